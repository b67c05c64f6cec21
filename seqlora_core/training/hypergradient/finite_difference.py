"""The hypergradient with its mixed derivative taken by central differences (DARTS, Liu et al., ICLR 2019)."""

import torch
from torch import Tensor

from .lower_level import StepSizes, descend


def finite_difference(
    objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int
) -> tuple[float, list[Tensor]]:
    """Eq. 15 with `d2L/dBdA [D v] ~ (dL/dB(A + e D v) - dL/dB(A - e D v)) / 2e`, `v = dL/dA(A+, B)`.

    Differs from DARTS in the step: `e |D v|` is `objective.difference_step` times |A| (or the length of the lower step,
    where that is longer, since A starts at zero), because a fixed length drowns in bfloat16's rounding.  With several
    inner steps the difference is taken at the middle of the lower path, once.
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
