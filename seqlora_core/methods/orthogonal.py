"""Orthogonal Adaptation (Po et al., CVPR 2024): a frozen basis from one shared orthogonal matrix; A is trained."""

from .. import subspace
from .method import Method


def _start(Q, config, generator, covariance):
    return subspace.shared_columns(Q, config.rank, generator, config.draw == "without-replacement")


def _iterate(objective, lower, upper, Q, config) -> float:
    B = [b.detach() for b in upper.parameters]
    loss, dL_dA, _ = objective.gradients([a.detach() for a in lower.parameters], B)
    lower.step(dL_dA)
    return loss


ORTHOGONAL = Method("orthogonal", _start, _iterate, constrained=True, base="bare")
