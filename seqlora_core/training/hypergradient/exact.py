"""The hypergradient by differentiation through the lower-level steps: the reference."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .interface import Objective, StepSizes


def exact(
    objective: Objective, A: list[Tensor], B: list[Tensor], step_sizes: StepSizes, inner_steps: int
) -> tuple[float, list[Tensor]]:
    """Compute eq. 15 by autograd's double backward (the "double grad trick" of eq. 16), through every lower-level step.

    Fused attention kernels have no second derivative, so it uses the math kernel.  Memory grows with `inner_steps`.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        B = [b.detach().requires_grad_() for b in B]
        A_k = [a.detach().requires_grad_() for a in A]
        first_loss = None
        for _ in range(inner_steps):
            loss = objective.loss(A_k, B)
            first_loss = float(loss.detach()) if first_loss is None else first_loss
            g = torch.autograd.grad(loss, A_k, create_graph=True)
            D = step_sizes([g_a.detach() for g_a in g])
            A_k = [a - d * g_a for a, d, g_a in zip(A_k, D, g, strict=True)]  # eq. 8
        phi = objective.loss(A_k, B)  # eq. 9
        return first_loss, list(torch.autograd.grad(phi, B))
