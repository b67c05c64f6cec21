"""The hypergradient with its mixed derivative as a central difference (DARTS, Liu et al., ICLR 2019)."""

import torch
from torch import Tensor

from .interface import Loss, Objective, StepSizes
from .lower_level import descend


def finite_difference(
    objective: Objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int
) -> tuple[Loss, list[Tensor]]:
    """Compute eq. 15 with `d2L/dBdA [D v] ~ (dL/dB(A + e D v) - dL/dB(A - e D v)) / 2e`, with
    `v = dL/dA(A+, B)`.

    The step differs from DARTS: `e |D v|` is `objective.difference_step` times |A|, or the length of the lower step if
    that is longer (A starts at zero), because bfloat16's rounding drowns a step of fixed length.  With several inner
    steps there is one difference, at the middle of the lower path.
    """
    path = descend(objective, A, B, step_sizes, inner_steps)
    _, v, dL_dB = objective.gradients(path.A_plus, B)
    # The path's last point is a step beyond the last point whose gradient it used.
    reach = (inner_steps - 1) / (2 * inner_steps)
    middle = [a + reach * (a_plus - a) for a, a_plus in zip(A, path.A_plus, strict=True)]
    direction = [d * v_a for d, v_a in zip(path.step_sizes, v, strict=True)]
    moved = _norm([a_plus - a for a, a_plus in zip(A, path.A_plus, strict=True)])
    length = max(objective.difference_step * _norm(A), moved)
    e = length / max(_norm(direction), torch.finfo(torch.float32).tiny)
    ahead, behind = (
        objective.gradients([a + sign * e * d for a, d in zip(middle, direction, strict=True)], B)[2]
        for sign in (1, -1)
    )
    mixed = [(plus - minus) / (2 * e) for plus, minus in zip(ahead, behind, strict=True)]
    return path.loss, [b - cross for b, cross in zip(dL_dB, mixed, strict=True)]


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())
