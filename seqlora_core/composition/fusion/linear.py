"""The weighted sums of adapters: their sum (eq. 3) and their weighted average."""

from collections.abc import Callable, Sequence

from ...errors import UserError
from ...model.adapters import sum_adapters
from .fusion import Fusion


def average(strengths: Sequence[float]) -> list[float]:
    """Compute `s_i / sum_i s_i`: federated averaging (McMahan et al., 2017) with the strengths as weights.

    Raises:
        UserError: the strengths do not add up to more than 0.
    """
    total = sum(strengths)
    if total <= 0:
        raise UserError(f"The strengths of a weighted average must add up to more than 0, not to {total:g}.")
    return [strength / total for strength in strengths]


def _weighted_sum(name: str, weigh: Callable[[Sequence[float]], list[float]]) -> Fusion:
    def run(parts, source, settings):
        weights = weigh([part.strength for part in parts])
        return sum_adapters([(part.adapters, weight) for part, weight in zip(parts, weights, strict=True)])

    return Fusion(name, run, weigh)


SUM = _weighted_sum("sum", list)
WEIGHTED_AVERAGE = _weighted_sum("weighted-average", average)
