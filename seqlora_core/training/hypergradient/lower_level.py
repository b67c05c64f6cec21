"""The tentative lower-level steps that two of the hypergradients share (eq. 8)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

StepSizes = Callable[[Sequence[Tensor]], list[Tensor]]


class LowerPath(NamedTuple):
    """Where `inner_steps` lower-level steps lead."""

    A_plus: list[Tensor]  # [m, r] a layer
    loss: float  # L(A, B), before the first step
    dL_dB: list[Tensor]  # at (A, B)
    step_sizes: list[Tensor]  # D, summed over the steps


def descend(objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int) -> LowerPath:
    """`A+ = A - D g`, `g = dL/dA (A, B)`, taken `inner_steps` times; one pass a step."""
    loss, g, dL_dB = objective.gradients(A, B)
    first_loss, first_dL_dB = loss, dL_dB
    total = D = step_sizes(g)
    A_plus = [a - d * g_a for a, d, g_a in zip(A, D, g, strict=True)]
    for _ in range(inner_steps - 1):
        _, g, _ = objective.gradients(A_plus, B)
        D = step_sizes(g)
        A_plus = [a - d * g_a for a, d, g_a in zip(A_plus, D, g, strict=True)]
        total = [t + d for t, d in zip(total, D, strict=True)]
    return LowerPath(A_plus, first_loss, first_dL_dB, total)
