"""The steps of the two factors: the paper's plain gradient steps, or Adam's, before the same projection."""

from collections.abc import Sequence

import torch
from torch import Tensor


class FactorOptimizer:
    """Steps one factor (A or B) of all layers at once.

    Args:
        parameters: leaf tensors, changed in place by `step`.
        kind: "gradient" (eqs. 8, 17, 18 as they stand) or "adam".
        step_size: the paper's alpha (for A) or beta (for B), or Adam's learning rate.
        clip: bound on the joint norm of all gradients; 0 means no bound.
        directions: V [n, d] per parameter [n, r].  If given, steps are taken in the coordinates C [d, r] of V C; the
            paper's gradient step becomes `-step_size V V^T gradient`.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        kind: str,
        step_size: float,
        clip: float,
        directions: Sequence[Tensor] | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self._first_step_size = self.step_size = step_size
        self.clip = clip
        self.adaptive = kind == "adam"
        optimizer = torch.optim.Adam if self.adaptive else torch.optim.SGD
        self._directions = directions
        # Neither optimizer depends on the value of a variable, so each step in coordinates may start from 0.
        self._variables = self.parameters
        if directions is not None:
            pairs = zip(self.parameters, directions, strict=True)
            self._variables = [p.new_zeros(V.shape[1], p.shape[1]) for p, V in pairs]
        self._optimizer = optimizer(self._variables, lr=step_size)

    def scale_step_size(self, factor: float) -> None:
        """Set the step size to the first one times a factor."""
        self.step_size = self._first_step_size * factor
        for group in self._optimizer.param_groups:
            group["lr"] = self.step_size

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters along their gradients."""
        scale = self._clip_factor(gradients)
        if self._directions is not None:
            # Transposed products, V^T g = (g^T V)^T: with so few columns, a CPU takes a third of the time for them.
            gradients = [(gradient.mT @ V).mT for V, gradient in zip(self._directions, gradients, strict=True)]
        for variable, gradient in zip(self._variables, gradients, strict=True):
            variable.grad = gradient * scale
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._directions is not None:
            for parameter, C, V in zip(self.parameters, self._variables, self._directions, strict=True):
                parameter.data += (C.mT @ V.mT).mT
                C.zero_()

    def step_sizes(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the factors D of the tentative lower step `A+ = A - D g`, which approximates `step`.

        They are scalars for plain gradient steps.  For Adam they are its diagonal preconditioner with the new gradient
        included, without momentum, so that the step is linear in `g` as in eq. 8.
        """
        scale = self._clip_factor(gradients)
        if not self.adaptive:
            return [scale * self.step_size for _ in gradients]
        return [
            scale * self._preconditioner(parameter, gradient * scale)
            for parameter, gradient in zip(self.parameters, gradients, strict=True)
        ]

    def _preconditioner(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        group = self._optimizer.param_groups[0]
        decay, eps = group["betas"][1], group["eps"]
        state = self._optimizer.state.get(parameter, {})
        moment = decay * state.get("exp_avg_sq", torch.zeros_like(gradient)) + (1 - decay) * gradient.square()
        bias = 1 - decay ** (float(state.get("step", 0)) + 1)
        return self.step_size / ((moment / bias).sqrt() + eps)

    def _clip_factor(self, gradients: Sequence[Tensor]) -> Tensor:
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        return (self.clip / (norm + 1e-12)).clamp(max=1.0) if self.clip else torch.ones_like(norm)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state as flat tensors, for a checkpoint."""
        return {
            f"{index}.{name}": torch.as_tensor(value)
            for index, state in self._optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if value is not None
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
