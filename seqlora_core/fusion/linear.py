"""The fusions that look at nothing but the adapters: their sum (eq. 3) and their weighted average."""

from ..composition import sum_adapters
from ..errors import UserError
from .fusion import Fusion


def _sum(parts, source, settings):
    return sum_adapters([(part.adapters, part.strength) for part in parts])


def _weighted_average(parts, source, settings):
    """`sum_i s_i dW_i / sum_i s_i`, federated averaging (McMahan et al., 2017) with the strengths as weights."""
    total = sum(part.strength for part in parts)
    if total <= 0:
        raise UserError(f"The strengths of a weighted average must add up to more than 0, not to {total:g}.")
    return sum_adapters([(part.adapters, part.strength / total) for part in parts])


SUM = Fusion("sum", _sum, reads_base=False)
WEIGHTED_AVERAGE = Fusion("weighted-average", _weighted_average, reads_base=False)
