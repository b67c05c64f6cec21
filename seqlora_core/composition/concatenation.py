"""Sum concepts into one adapter per layer, whose product is the sum of the concepts' updates (eq. 3)."""

from collections.abc import Sequence

import torch

from ..bank import Bank
from ..model.adapters import Adapter
from ..model.sd15 import LayerShape
from .selection import chosen_concepts


class ConcatenatedFactors:
    """The factors of several concepts in one layer, side by side, filled concept by concept.

    Args:
        shape: the widths of the layer.
        room: at least the sum of the ranks that will be appended.

    Attributes:
        owner: the index of each column's concept.
    """

    def __init__(self, shape: LayerShape, room: int) -> None:
        self._up, self._down = torch.empty(room, shape.out), torch.empty(room, shape.width)  # up transposed, down
        self.owner: list[int] = []

    def append(self, owner: int, adapter: Adapter, strength: float) -> None:
        """Append one concept's factors, with the strength multiplied into `up`."""
        taken = slice(len(self.owner), len(self.owner) + adapter.rank)
        torch.mul(adapter.up.mT, strength, out=self._up[taken])
        self._down[taken] = adapter.down
        self.owner += [owner] * adapter.rank

    @property
    def adapter(self) -> Adapter:
        """The sum of the appended adapters."""
        used = len(self.owner)
        return Adapter(self._up[:used].mT, self._down[:used])  # [m, sum of ranks], [sum of ranks, n]


def concatenate(bank: Bank, selection: Sequence[tuple[str, float]]) -> dict[str, ConcatenatedFactors]:
    """Read the factors of selected concepts of a bank, side by side in each layer that any of them adapts.

    Args:
        selection: (name, strength) of each concept.

    Raises:
        UserError: see `selection.select`.
    """
    concepts = chosen_concepts(bank, selection)
    factors = {}
    for layer, shape in bank.manifest.layers.items():
        if room := sum(concept.rank for concept in concepts if layer not in concept.layers_skipped):
            factors[layer] = ConcatenatedFactors(shape, room)
    for index, adapters in enumerate(bank.read(concepts)):
        for layer, adapter in adapters.items():
            factors[layer].append(index, adapter, selection[index][1])
    return factors


def compose(bank: Bank, selection: Sequence[tuple[str, float]]) -> dict[str, Adapter]:
    """Sum selected concepts of a bank.

    Args:
        selection: (name, strength) of each concept.

    Returns:
        One adapter per layer, by canonical name.

    Raises:
        UserError: see `selection.select`.
    """
    return {layer: factors.adapter for layer, factors in concatenate(bank, selection).items()}
