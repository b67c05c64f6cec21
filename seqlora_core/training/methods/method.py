"""What a training method is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import subspace
from ...model.adapters import Adapter
from ..bilevel import Loss, Objective
from ..config import ResolvedConfig
from ..factor_optimizer import FactorOptimizer

Start = Callable[[Tensor, ResolvedConfig, torch.Generator, Tensor | None, Tensor | None], Tensor]
Penalty = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
Iterate = Callable[[Objective, FactorOptimizer, FactorOptimizer, Sequence[Tensor], ResolvedConfig], Loss]


@dataclass(frozen=True)
class Method:
    """A way to train one concept's factors.

    Attributes:
        start: (Q [n, k], config, generator, covariance, directions) -> the first B [n, r].  The covariance [n, n] is of
            what the layer receives for the new concept, the directions [n, n - k] are `contrastive_directions` (see
            `subspace`); both may be None.
        iterate: one iteration on fixed minibatches; moves the factors and returns the loss before it.
        constrained: whether B stays in the complement of earlier bases, so that a layer can be full.
        defaults: values of the settings that a user left open (see `TrainingConfig`).
        passes: gradients that one iteration takes, by the settings.
        needs_inputs: whether `start` needs the covariance whatever `init` says.
        penalty: (sum of the earlier concepts per layer, None where none acts; config) -> a further term of (A, B); None
            for a method without one.
    """

    name: str
    start: Start
    iterate: Iterate
    constrained: bool
    defaults: Mapping[str, object]
    passes: Callable[[ResolvedConfig], int] = lambda config: 1
    needs_inputs: bool = False
    penalty: Callable[[Sequence[Adapter | None], ResolvedConfig], Penalty] | None = None


def published_defaults(train_on: str) -> dict[str, object]:
    """Defaults of a method that is trained as it was published.

    Args:
        train_on: whether earlier concepts are part of the model while training.
    """
    return {
        "train_on": train_on,
        "init": "random",
        "coordinates": "plain",
        "interference_penalty": 0.0,
        "ridge": 1e-4,
        "average": 0.0,
    }


def start_in_complement(
    Q: Tensor,
    config: ResolvedConfig,
    generator: torch.Generator,
    covariance: Tensor | None,
    directions: Tensor | None,
) -> Tensor:
    """The start of a learned basis inside the free complement: from the layer's inputs where they are given."""
    if directions is not None:
        return subspace.contrastive_basis(Q, config.rank, directions)
    if covariance is not None:
        return subspace.spectral_basis(Q, config.rank, covariance)
    return subspace.random_basis(Q, config.rank, generator)


def step_coefficients(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], config: ResolvedConfig
) -> Loss:
    """One step of A with B frozen at its start; returns the loss before it."""
    B = [b.detach() for b in upper.parameters]
    loss, dL_dA, _ = objective.gradients([a.detach() for a in lower.parameters], B)
    lower.step(dL_dA)
    return loss
