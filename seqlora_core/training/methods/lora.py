"""Plain LoRA (Hu et al., ICLR 2022): both factors together, no constraint."""

from collections.abc import Sequence

from torch import Generator, Tensor

from ... import subspace
from ..bilevel import Loss, Objective
from ..config import ResolvedConfig
from ..factor_optimizer import FactorOptimizer
from .method import Method, published_defaults


def _start(
    Q: Tensor, config: ResolvedConfig, generator: Generator, covariance: Tensor | None, directions: Tensor | None
) -> Tensor:
    return subspace.random_basis(subspace.empty(Q.shape[0]), config.rank, generator)


def _iterate(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], config: ResolvedConfig
) -> Loss:
    A, B = ([factor.detach() for factor in optimizer.parameters] for optimizer in (lower, upper))
    loss, dL_dA, dL_dB = objective.gradients(A, B)
    lower.step(dL_dA)
    upper.step(dL_dB)
    return loss


LORA = Method("lora", _start, _iterate, constrained=False, defaults=published_defaults("bare"))
