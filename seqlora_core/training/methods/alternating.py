"""Continual Alternating: the paper's own baseline, Algorithm 1 without the coupling term."""

from ..bilevel import alternating_iteration
from .method import Method, start_in_complement


def _iterate(objective, lower, upper, Q, config) -> float:
    return alternating_iteration(objective, lower, upper, Q, config.inner_steps)


ALTERNATING = Method("alternating", start_in_complement, _iterate, constrained=True, base="accumulated")
