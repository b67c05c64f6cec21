"""The tentative lower-level steps that two of the hypergradients share (eq. 8)."""

from typing import NamedTuple

from torch import Tensor

from .interface import Loss, Objective, StepSizes


class LowerPath(NamedTuple):
    """The result of `inner_steps` lower-level steps.

    Attributes:
        A_plus: A after the steps, [m, r] per layer.
        loss: L(A, B) before the first step.
        dL_dB: dL/dB at (A, B), [n, r] per layer.
        step_sizes: the factors D, summed over the steps.
    """

    A_plus: list[Tensor]
    loss: Loss
    dL_dB: list[Tensor]
    step_sizes: list[Tensor]


def descend(
    objective: Objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int
) -> LowerPath:
    """Step `A+ = A - D g` with `g = dL/dA (A, B)`, `inner_steps` times; each step takes one pass."""
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
