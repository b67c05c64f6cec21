"""Plain LoRA (Hu et al., ICLR 2022): both factors together, no constraint."""

from ... import subspace
from .method import Method


def _start(Q, config, generator, covariance, directions):
    return subspace.random_basis(subspace.empty(Q.shape[0]), config.rank, generator)


def _iterate(objective, lower, upper, Q, config) -> float:
    A, B = ([factor.detach() for factor in optimizer.parameters] for optimizer in (lower, upper))
    loss, dL_dA, dL_dB = objective.gradients(A, B)
    lower.step(dL_dA)
    upper.step(dL_dB)
    return loss


LORA = Method("lora", _start, _iterate, constrained=False, base="bare")
