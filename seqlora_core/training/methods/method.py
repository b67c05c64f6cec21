"""What a training method is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import subspace
from ..bilevel import Objective
from ..config import TrainingConfig
from ..factor_optimizer import FactorOptimizer

Start = Callable[[Tensor, TrainingConfig, torch.Generator, Tensor | None, Tensor | None], Tensor]
Iterate = Callable[[Objective, FactorOptimizer, FactorOptimizer, Sequence[Tensor], TrainingConfig], float]


@dataclass(frozen=True)
class Method:
    """A way to train one concept's factors.

    Attributes:
        start: (Q [n, k], config, generator, covariance, directions) -> the first B [n, r]; the last two, [n, n] of what
            the layer reads for the new concept and [n, n - k] (see `subspace.contrastive_directions`), may be None.
        iterate: one iteration on a fixed minibatch; moves the factors, returns the loss before it.
        constrained: whether B keeps to the complement of earlier bases, so that a layer can be full.
        base: what `train_on="auto"` means: "accumulated", "subsets" or "bare" (see `TrainingPlan`).
        init: what `init="auto"` means for a learned basis.
        coordinates: what `coordinates="auto"` means (see `TrainingPlan.coordinates`).
        crosstalk: the weight that `crosstalk=None` means (see `crosstalk`).
        ridge: the weight that `ridge=None` means.
        average: the share of steps that `average=None` means (see `averaging`).
        reads_inputs: whether `start` needs the covariance of the layer's inputs whatever `init` says.
    """

    name: str
    start: Start
    iterate: Iterate
    constrained: bool
    base: str
    init: str = "random"
    coordinates: str = "plain"
    crosstalk: float = 0.0
    ridge: float = 1e-4
    average: float = 0.0
    reads_inputs: bool = False


def start_in_complement(
    Q: Tensor, config: TrainingConfig, generator: torch.Generator, covariance: Tensor | None, directions: Tensor | None
) -> Tensor:
    """B's start for a learned basis, inside the free complement: by what is given of the layer's inputs, or random."""
    if directions is not None:
        return subspace.contrastive_basis(Q, config.rank, directions)
    if covariance is not None:
        return subspace.spectral_basis(Q, config.rank, covariance)
    return subspace.random_basis(Q, config.rank, generator)


def step_coefficients(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], config: TrainingConfig
) -> float:
    """One step of A with B frozen at its start; returns the loss before it."""
    B = [b.detach() for b in upper.parameters]
    loss, dL_dA, _ = objective.gradients([a.detach() for a in lower.parameters], B)
    lower.step(dL_dA)
    return loss
