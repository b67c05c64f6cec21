"""Continual Alternating: the paper's own baseline, Algorithm 1 without the coupling term."""

from collections.abc import Sequence

from torch import Tensor

from ..bilevel import Loss, Objective, alternating_iteration
from ..config import ResolvedConfig
from ..factor_optimizer import FactorOptimizer
from .method import Method, published_defaults, start_in_complement


def _iterate(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], config: ResolvedConfig
) -> Loss:
    return alternating_iteration(objective, lower, upper, Q, config.inner_steps)


ALTERNATING = Method(
    "alternating",
    start_in_complement,
    _iterate,
    constrained=True,
    defaults=published_defaults("accumulated"),
    passes=lambda config: config.inner_steps + 1,
)
