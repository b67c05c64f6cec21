"""The hypergradient at the cost of one more gradient: the lower step serves as the finite difference."""

from torch import Tensor

from .interface import Loss, Objective, StepSizes
from .lower_level import descend


def lookahead(
    objective: Objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int
) -> tuple[Loss, list[Tensor]]:
    """Compute `dPhi/dB ~ 2 dL/dB(A+, B) - dL/dB(A, B)`.

    (ours) In eq. 15, `v = dL/dA(A+, B)` is close to the `g` that the lower step followed, and
    `A+ - A = -D g`; so `-d2L/dBdA [D v] ~ dL/dB(A+, B) - dL/dB(A, B)`.  It takes two passes with
    one inner step and no second derivative, so it works with any attention kernel and with gradient checkpointing.
    """
    path = descend(objective, A, B, step_sizes, inner_steps)
    _, _, dL_dB = objective.gradients(path.A_plus, B)
    return path.loss, [2 * ahead - here for ahead, here in zip(dL_dB, path.dL_dB, strict=True)]
