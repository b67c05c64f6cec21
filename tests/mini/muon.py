"""Muon for matrices and convolutions, AdamW for all else."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_QUINTIC = (3.4445, -4.775, 2.0315)  # Jordan et al. 2024: singular values to about 1 in five iterations
_ITERATIONS = 5


class Muon(Optimizer):
    """Steps along the momentum with all its singular values made equal (Jordan et al. 2024), scaled to the size of
    AdamW's steps (Liu et al. 2025), so that both take the same step size and decay of weights.

    Args:
        rows: parameters that AdamW steps though they are matrices.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        rows: Iterable[nn.Parameter] = (),
    ):
        parameters, kept = list(parameters), {id(parameter) for parameter in rows}
        turned = [p for p in parameters if p.dim() > 1 and id(p) not in kept]
        other = [p for p in parameters if p.dim() < 2 or id(p) in kept]
        groups = [{"params": own, "turned": own is turned} for own in (turned, other) if own]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            advance = self._turned if group["turned"] else self._adam
            for parameter in group["params"]:
                update = advance(parameter, parameter.grad, self.state[parameter], group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _turned(self, parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> Tensor:
        if not state:
            state["average"] = torch.zeros_like(parameter)
        average = state["average"].mul_(group["momentum"]).add_(gradient)
        matrix = gradient.add(average, alpha=group["momentum"]).flatten(1)
        return (_orthogonal(matrix) * 0.2 * max(matrix.shape) ** 0.5).view(gradient.shape)

    def _adam(self, parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> Tensor:
        if not state:
            state.update(step=0, average=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        first, second = group["betas"]
        state["step"] += 1
        average = state["average"].lerp_(gradient, 1 - first) / (1 - first ** state["step"])
        square = state["square"].lerp_(gradient.square(), 1 - second) / (1 - second ** state["step"])
        return average / (square.sqrt() + 1e-8)


def _orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all the same."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(square, square, square, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
