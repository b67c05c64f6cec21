"""Orthogonal Adaptation (Po et al., CVPR 2024): a frozen basis from one shared orthogonal matrix; A is trained."""

from torch import Generator, Tensor

from ... import subspace
from ..config import ResolvedConfig
from .method import Method, published_defaults, step_coefficients


def _start(
    Q: Tensor, config: ResolvedConfig, generator: Generator, covariance: Tensor | None, directions: Tensor | None
) -> Tensor:
    return subspace.shared_columns(Q, config.rank, generator, config.column_sampling)


ORTHOGONAL = Method("orthogonal", _start, step_coefficients, constrained=True, defaults=published_defaults("bare"))
