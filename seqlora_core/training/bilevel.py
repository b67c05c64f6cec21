"""One iteration of Algorithm 1, and of the alternating baseline."""

from collections.abc import Sequence

from torch import Tensor

from .. import subspace
from .factor_optimizer import FactorOptimizer
from .hypergradient.interface import Hypergradient, Loss, Objective


def bilevel_iteration(
    objective: Objective,
    lower: FactorOptimizer,
    upper: FactorOptimizer,
    Q: Sequence[Tensor],
    hypergradient: Hypergradient,
    inner_steps: int = 1,
) -> Loss:
    """Steps 1 to 4 of Algorithm 1 on one minibatch; returns L before them.

    Args:
        lower: holds the coefficients A, changed in place.
        upper: holds the bases B, changed in place.
        Q: [n, k] per layer, an orthonormal basis of all earlier concepts' bases.
        hypergradient: one of `hypergradient.HYPERGRADIENTS`.
        inner_steps: the number of lower steps.

    Raises:
        TrainingDiverged: the loss or a gradient is not finite.
    """
    A, B = lower.parameters, upper.parameters
    loss, dPhi_dB = hypergradient(objective, _data(A), _data(B), lower.step_sizes, inner_steps)  # eqs. 8, 15, 16
    projected_step(upper, dPhi_dB, Q)  # eq. 17
    _take_lower_steps(objective, lower, B, inner_steps)  # eq. 18
    return loss


def reusing_iteration(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], inner_steps: int = 1
) -> Loss:
    """Like `bilevel_iteration` with the lookahead hypergradient, but reuse the lower steps and save their passes.

    (ours) Eq. 18 repeats the lower steps from the same A at the new B, with passes of its own.  Here the steps of eq. 8
    are kept, and the gradient at their end, which the hypergradient needs anyway, adds one more step at the old B.  The
    lookahead follows the steps that the optimizer really takes, including Adam's momentum.
    """
    A, B = lower.parameters, upper.parameters
    loss, before = _take_lower_steps(objective, lower, B, inner_steps)
    _, dL_dA, ahead = objective.gradients(_data(A), _data(B))
    projected_step(upper, [2 * after - here for after, here in zip(ahead, before, strict=True)], Q)
    lower.step(dL_dA)
    return loss


def alternating_iteration(
    objective: Objective, lower: FactorOptimizer, upper: FactorOptimizer, Q: Sequence[Tensor], inner_steps: int = 1
) -> Loss:
    """Take one step of the paper's "Continual Alternating": A at a fixed B, then B at a fixed A, projected.

    There is no coupling term.
    """
    A, B = lower.parameters, upper.parameters
    loss, _ = _take_lower_steps(objective, lower, B, inner_steps)
    _, _, dL_dB = objective.gradients(_data(A), _data(B))
    projected_step(upper, dL_dB, Q)
    return loss


def _take_lower_steps(
    objective: Objective, lower: FactorOptimizer, B: Sequence[Tensor], count: int
) -> tuple[Loss, list[Tensor]]:
    """Step A `count` times at a fixed B; return L and dL/dB before the first step."""
    before = None
    for _ in range(count):
        loss, dL_dA, dL_dB = objective.gradients(_data(lower.parameters), _data(B))
        before = before or (loss, dL_dB)
        lower.step(dL_dA)
    return before


def projected_step(upper: FactorOptimizer, gradient: Sequence[Tensor], Q: Sequence[Tensor]) -> None:
    """Step B and project it, `B <- P (B - step)` (eq. 17), with any optimizer.

    The gradient is projected too.  This does not change plain gradient steps, but an adaptive optimizer would otherwise
    scale its steps by directions in which B must not move.
    """
    upper.step([subspace.project(g, q) for g, q in zip(gradient, Q, strict=True)])
    for B, q in zip(upper.parameters, Q, strict=True):
        B.data.copy_(subspace.project(B.data, q))


def _data(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach() for parameter in parameters]
