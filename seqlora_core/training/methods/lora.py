"""Plain LoRA (Hu et al., ICLR 2022): both factors together, no constraint."""

from collections.abc import Sequence

from torch import Generator, Tensor

from ... import subspace
from ..bilevel import Loss, Objective
from ..config import ResolvedConfig
from ..factor_optimizer import FactorOptimizer
from .method import Method, published_defaults


def random_start(
    Q: Tensor, config: ResolvedConfig, generator: Generator, covariance: Tensor | None, directions: Tensor | None
) -> Tensor:
    """A random basis, whatever earlier concepts hold."""
    return subspace.random_basis(subspace.empty(Q.shape[0]), config.rank, generator)


def step_both(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], config: ResolvedConfig
) -> Loss:
    """One step of both factors; returns the loss before it."""
    A, B = ([factor.detach() for factor in optimizer.parameters] for optimizer in (lower, upper))
    loss, dL_dA, dL_dB = objective.gradients(A, B)
    lower.step(dL_dA)
    upper.step(dL_dB)
    return loss


LORA = Method("lora", random_start, step_both, constrained=False, defaults=published_defaults("bare"))
