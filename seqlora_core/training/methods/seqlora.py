"""SeqLoRA: bilevel optimization of both factors under the orthogonality constraint (Algorithm 1)."""

from ..bilevel import bilevel_iteration, reusing_iteration
from ..hypergradient import HYPERGRADIENTS
from .method import Method, start_in_complement


def _iterate(objective, lower, upper, Q, config) -> float:
    if config.keeps_lower_step:
        return reusing_iteration(objective, lower, upper, Q, config.inner_steps)
    hypergradient = HYPERGRADIENTS[config.hypergradient]
    return bilevel_iteration(objective, lower, upper, Q, hypergradient, config.inner_steps)


SEQLORA = Method(
    "seqlora",
    start_in_complement,
    _iterate,
    constrained=True,
    base="subsets",
    init="contrastive",
    coordinates="contrastive",
    crosstalk=0.01,
    ridge=0.0,
    average=0.5,
)
