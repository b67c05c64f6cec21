"""One iteration of Algorithm 1, and of the alternating baseline that it is compared with."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from .. import subspace
from .factor_optimizer import FactorOptimizer

Hypergradient = Callable[..., tuple[float, list[Tensor]]]


class Objective(Protocol):
    """The loss `L(A, B)` of one minibatch, fixed while an iteration lasts.  `A [m, r]`, `B [n, r]`, one a layer."""

    difference_step: float  # relative step at which a central difference of its gradient is accurate

    def loss(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> Tensor:
        """L(A, B) as a scalar with its graph."""

    def gradients(self, A: Sequence[Tensor], B: Sequence[Tensor]) -> tuple[float, list[Tensor], list[Tensor]]:
        """L, dL/dA and dL/dB at (A, B): one forward and backward pass."""


def bilevel_iteration(
    objective: Objective,
    lower: FactorOptimizer,
    upper: FactorOptimizer,
    Q: Sequence[Tensor],
    hypergradient: Hypergradient,
    inner_steps: int = 1,
) -> float:
    """Steps 1 to 4 of Algorithm 1 on one minibatch; returns L before them.

    Args:
        lower, upper: hold the factors A and B, changed in place.
        Q: [n, k] a layer, orthonormal basis of all earlier concepts' bases.
        hypergradient: one of `hypergradient.HYPERGRADIENTS`.
    """
    A, B = lower.parameters, upper.parameters
    loss, dPhi_dB = hypergradient(objective, _data(A), _data(B), lower.step_sizes, inner_steps)  # eqs. 8, 15, 16
    projected_step(upper, dPhi_dB, Q)  # eq. 17
    _take_lower_steps(objective, lower, B, inner_steps)  # eq. 18
    return loss


def reusing_iteration(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], inner_steps: int = 1
) -> float:
    """`bilevel_iteration` with the lookahead hypergradient, where nothing that a pass gives is thrown away.

    (ours) Eq. 18 takes the lower steps again, from the same A at the new B, for passes of their own.  Here those of
    eq. 8 are kept, and the pass at their end, which the hypergradient needs, gives one more at the old B.  The
    lookahead follows the steps that the optimizer really takes, so with Adam its momentum is part of them.
    """
    A, B = lower.parameters, upper.parameters
    loss, before = _take_lower_steps(objective, lower, B, inner_steps)
    _, dL_dA, ahead = objective.gradients(_data(A), _data(B))
    projected_step(upper, [2 * after - here for after, here in zip(ahead, before, strict=True)], Q)
    lower.step(dL_dA)
    return loss


def alternating_iteration(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], inner_steps: int = 1
) -> float:
    """The paper's "Continual Alternating": fix B and step A, fix A and step B, project.  No coupling term."""
    A, B = lower.parameters, upper.parameters
    loss, _ = _take_lower_steps(objective, lower, B, inner_steps)
    _, _, dL_dB = objective.gradients(_data(A), _data(B))
    projected_step(upper, dL_dB, Q)
    return loss


def _take_lower_steps(
    objective: Objective, lower: FactorOptimizer, B: Sequence[Tensor], count: int
) -> tuple[float, list[Tensor]]:
    """Moves A `count` times at a fixed B; returns L and dL/dB before the first step."""
    before = None
    for _ in range(count):
        loss, dL_dA, dL_dB = objective.gradients(_data(lower.parameters), _data(B))
        before = before or (loss, dL_dB)
        lower.step(dL_dA)
    return before


def projected_step(upper: FactorOptimizer, gradient: Sequence[Tensor], Q: Sequence[Tensor]) -> None:
    """`B <- P (B - step)` (eq. 17), for any optimizer.

    The gradient is projected too: for plain steps this changes nothing, but an adaptive optimizer would otherwise scale
    its steps by directions in which B may not move.
    """
    upper.step([subspace.project(g, q) for g, q in zip(gradient, Q, strict=True)])
    for B, q in zip(upper.parameters, Q, strict=True):
        B.data.copy_(subspace.project(B.data, q))


def _data(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach() for parameter in parameters]
