"""What keeps a training run from losing work, or from storing a concept that came out wrong."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ..errors import TrainingDiverged, TrainingExploded
from ..monitor import Monitor
from .objective import DenoisingObjective
from .progress import mean_of_tenth
from .state import TrainingState
from .token_embedding import WordState

# An exploded run ends at many times the loss that it began with, and above what predicting no noise at all costs (1).
_EXPLODED_RATIO, _EXPLODED_LOSS = 5.0, 2.0


@contextmanager
def undone_if_interrupted(state: TrainingState | WordState, objective: DenoisingObjective) -> Iterator[None]:
    """Leave everything as it was before a step that does not end: hosts raise their interrupt inside any layer."""
    before, step, losses = state.copy(), state.step, len(state.losses)
    passes, loss_scale = objective.passes, objective.loss_scale
    try:
        yield
    except BaseException:
        state.restore(before)
        state.step = step
        del state.losses[losses:]
        objective.passes, objective.loss_scale = passes, loss_scale
        raise


def read_loss(objective: DenoisingObjective, loss: Tensor | float, state: TrainingState) -> float:
    """Read a step's loss.  Raises TrainingDiverged where it is not finite, so that no checkpoint ever holds it."""
    value, finite = objective.read(loss, [*state.lower.parameters, *state.upper.parameters], moved=state.step > 0)
    if not finite:
        raise TrainingDiverged(
            f"The factors are no longer finite after step {state.step + 1}: lower lr_coefficients and lr_basis."
        )
    return value


def check_not_exploded(losses: Sequence[float], store_anyway: bool, monitor: Monitor) -> None:
    """Raises TrainingExploded where the loss ended far above where it began, unless it is stored anyway."""
    first, final = mean_of_tenth(losses, last=False), mean_of_tenth(losses, last=True)
    if final <= max(_EXPLODED_LOSS, _EXPLODED_RATIO * first):
        return
    rise = f"The loss rose from {first:.3g} to {final:.3g}"
    if not store_anyway:
        raise TrainingExploded(f"{rise}, so the concept is not stored: lower lr_coefficients and lr_basis.")
    monitor.message(f"{rise}; the concept is stored all the same, as you asked.")
