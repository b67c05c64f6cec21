"""The hypergradient for the price of one more gradient: the lower step is the finite difference."""

from torch import Tensor

from .lower_level import StepSizes, descend


def lookahead(
    objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int
) -> tuple[float, list[Tensor]]:
    """`dPhi/dB ~ 2 dL/dB(A+, B) - dL/dB(A, B)`.

    (ours) In eq. 15, `v = dL/dA(A+, B)` is close to the `g` that the lower step followed, and
    `A+ - A = -D g`; so `-d2L/dBdA [D v] ~ dL/dB(A+, B) - dL/dB(A, B)`.  Two passes with one inner step, no second
    derivative, hence any attention kernel and gradient checkpointing.
    """
    path = descend(objective, A, B, step_sizes, inner_steps)
    _, _, dL_dB = objective.gradients(path.A_plus, B)
    return path.loss, [2 * ahead - here for ahead, here in zip(dL_dB, path.dL_dB, strict=True)]
