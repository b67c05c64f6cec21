"""What a training run changes from step to step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .config import ResolvedConfig
from .factor_optimizer import FactorOptimizer
from .tail_average import TailAverage


@dataclass
class TrainingState:
    """The factors with their optimizers, the mean over the last steps, and how far the run has come.

    Attributes:
        lower: moves the coefficients A [m, r], one tensor per layer.
        upper: moves the bases B [n, r], one tensor per layer.
        average: the mean of both over the last steps.
        step: finished steps.
        losses: one per finished step.
        seconds: spent in steps, over all sessions of the run.
        coordinates: a hash of the directions along which B moves; empty for its own coordinates.
    """

    lower: FactorOptimizer
    upper: FactorOptimizer
    average: TailAverage
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    coordinates: str = ""

    @classmethod
    def begin(
        cls,
        A: Sequence[Tensor],
        B: Sequence[Tensor],
        config: ResolvedConfig,
        first_averaged: int,
        coordinates: Sequence[Tensor] | None,
        device: torch.device,
    ) -> "TrainingState":
        """The state before the first step.

        Args:
            coordinates: per layer, the directions [n, d] along which B moves; None for its own.
        """
        # One memory layout, or a resumed run would use other kernels and round differently.
        A, B = ([factor.to(device).contiguous() for factor in factors] for factors in (A, B))
        return cls(
            FactorOptimizer(A, config.optimizer, config.lr_coefficients, config.clip),
            FactorOptimizer(B, config.optimizer, config.lr_basis, config.clip, coordinates),
            TailAverage(first_averaged),
        )

    def scale_step_sizes(self, factor: float) -> None:
        """Set both step sizes to the first ones times a factor."""
        for optimizer in (self.lower, self.upper):
            optimizer.scale_step_size(factor)

    def finish_step(self, loss: float) -> None:
        """Count a step whose factors are in place."""
        self.losses.append(loss)
        self.average.add(self.step, [*self.lower.parameters, *self.upper.parameters])
        self.step += 1

    def factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """A and B as the concept has them if the run ends here."""
        means = self.average.of([*self.lower.parameters, *self.upper.parameters])
        count = len(self.lower.parameters)
        return means[:count], means[count:]

    def state_dict(self, layers: Sequence[str]) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint.

        Args:
            layers: the names of the adapted layers, in order.
        """
        tensors = {f"A.{name}": a for name, a in zip(layers, self.lower.parameters, strict=True)}
        tensors |= {f"B.{name}": b for name, b in zip(layers, self.upper.parameters, strict=True)}
        tensors |= {f"lower.{key}": value for key, value in self.lower.state_tensors().items()}
        tensors |= {f"upper.{key}": value for key, value in self.upper.state_tensors().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state_tensors().items()}
        return tensors

    def load_optimizers(self, tensors: Mapping[str, Tensor], device: torch.device, keep_upper: bool = True) -> None:
        """Restore the optimizers and the mean from `state_dict`; the factors are given to `begin`.

        Args:
            keep_upper: whether the memory of the basis's optimizer is in this run's coordinates.
        """
        self.lower.load_state_tensors(_with_prefix(tensors, "lower."))
        self.upper.load_state_tensors(_with_prefix(tensors, "upper.") if keep_upper else {})
        self.average.load_state_tensors(_with_prefix(tensors, "average."), device)

    def copy(self) -> dict[str, Tensor]:
        """A copy of the tensors that a step changes, for `restore`; small compared with what a pass takes."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict(self._numbers()).items()}

    def restore(self, copy: Mapping[str, Tensor]) -> None:
        """Go back to a `copy` that was made after the last finished step."""
        for factor, optimizer in (("A", self.lower), ("B", self.upper)):
            for number, parameter in zip(self._numbers(), optimizer.parameters, strict=True):
                parameter.data.copy_(copy[f"{factor}.{number}"])
        self.load_optimizers(copy, self.lower.parameters[0].device)

    def _numbers(self) -> list[str]:
        return [str(number) for number in range(len(self.lower.parameters))]


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
