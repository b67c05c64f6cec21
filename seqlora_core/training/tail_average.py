"""The mean of the factors over the last steps, which is the result of a training run.

(ours) With few images per step, the gradient is mostly noise, and so is the last iterate.  The mean of many iterates
has less of it and costs no pass (Polyak and Juditsky 1992; over the tail, Jain et al. 2018).  The
projection of eq. 17 is linear, so the mean of bases outside span(Q) is outside it too.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class TailAverage:
    """The mean of a list of factors over the steps from `first` on.

    Args:
        first: the index, from 0, of the first step whose factors count.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._count = 0
        self._means: list[Tensor] = []

    def add(self, step: int, factors: Sequence[Tensor]) -> None:
        """Add the factors after a step, if it is one of the last steps."""
        if step < self._first:
            return
        self._count += 1
        if self._count == 1:
            self._means = [factor.detach().clone() for factor in factors]
        for mean, factor in zip(self._means, factors, strict=True):
            mean += (factor.detach() - mean) / self._count

    def of(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the means so far; before the first averaged step, return the given factors."""
        return self._means if self._count else [factor.detach() for factor in factors]

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the means and their count as flat tensors, for a checkpoint."""
        means = {str(index): mean for index, mean in enumerate(self._means)}
        return {**means, "count": torch.tensor(self._count)}

    def load_state_tensors(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore what `state_tensors` returned; checkpoints older than averaging hold nothing."""
        self._count = int(tensors.get("count", 0))
        self._means = [tensors[str(index)].to(device) for index in range(len(tensors) - 1)]
