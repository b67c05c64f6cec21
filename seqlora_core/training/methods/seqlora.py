"""SeqLoRA: bilevel optimization of both factors under the orthogonality constraint (Algorithm 1)."""

from collections.abc import Sequence

from torch import Tensor

from ..bilevel import Loss, Objective, bilevel_iteration, reusing_iteration
from ..config import ResolvedConfig
from ..factor_optimizer import FactorOptimizer
from ..hypergradient import HYPERGRADIENTS, PASSES
from .method import Method, start_in_complement


def _iterate(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], config: ResolvedConfig
) -> Loss:
    if config.lower_step == "reuse":
        return reusing_iteration(objective, lower, upper, Q, config.inner_steps)
    hypergradient = HYPERGRADIENTS[config.hypergradient]
    return bilevel_iteration(objective, lower, upper, Q, hypergradient, config.inner_steps)


def _passes(config: ResolvedConfig) -> int:
    if config.lower_step == "reuse":
        return config.inner_steps + 1
    return 2 * config.inner_steps + PASSES[config.hypergradient]


SEQLORA = Method(
    "seqlora",
    start_in_complement,
    _iterate,
    constrained=True,
    passes=_passes,
    defaults={
        "train_on": "alternate",
        "init": "contrastive",
        "coordinates": "contrastive",
        "interference_penalty": 0.01,
        "ridge": 0.0,
        "average": 0.5,
    },
)
