"""Orthogonal Adaptation (Po et al., CVPR 2024): a frozen basis from one shared orthogonal matrix; A is trained."""

from ... import subspace
from .method import Method, step_coefficients


def _start(Q, config, generator, covariance, directions):
    return subspace.shared_columns(Q, config.rank, generator, config.draw)


ORTHOGONAL = Method("orthogonal", _start, step_coefficients, constrained=True, base="bare")
