"""Summing concepts: one adapter a layer whose product is the sum of the parts (eq. 3)."""

from collections.abc import Sequence

import torch

from ..bank import Bank
from ..model.adapters import Adapter
from ..model.sd15 import LayerShape
from .selection import chosen_concepts


class ConcatenatedFactors:
    """One layer's factors of several concepts side by side, as they are read one after the other.

    Args:
        room: at least the sum of the ranks to come.

    Attributes:
        owner: the concept of each column.
    """

    def __init__(self, shape: LayerShape, room: int) -> None:
        self._up, self._down = torch.empty(room, shape.out), torch.empty(room, shape.width)  # up transposed, down
        self.owner: list[int] = []

    def append(self, owner: int, adapter: Adapter, strength: float) -> None:
        """Put in one concept's factors, with the strength in A."""
        taken = slice(len(self.owner), len(self.owner) + adapter.rank)
        torch.mul(adapter.up.mT, strength, out=self._up[taken])
        self._down[taken] = adapter.down
        self.owner += [owner] * adapter.rank

    @property
    def adapter(self) -> Adapter:
        """Their sum."""
        used = len(self.owner)
        return Adapter(self._up[:used].mT, self._down[:used])  # [m, sum of ranks], [sum of ranks, n]


def concatenate(bank: Bank, selection: Sequence[tuple[str, float]]) -> dict[str, ConcatenatedFactors]:
    """The factors of some of a bank's concepts, side by side in each layer that any of them adapts.

    Raises:
        UserError: as `select`.
    """
    concepts = chosen_concepts(bank, selection)
    stacks = {}
    for layer, shape in bank.manifest.layers.items():
        if room := sum(concept.rank for concept in concepts if layer not in concept.layers_skipped):
            stacks[layer] = ConcatenatedFactors(shape, room)
    for index, adapters in enumerate(bank.read(concepts)):
        for layer, adapter in adapters.items():
            stacks[layer].append(index, adapter, selection[index][1])
    return stacks


def compose(bank: Bank, selection: Sequence[tuple[str, float]]) -> dict[str, Adapter]:
    """The sum of some of a bank's concepts.

    Raises:
        UserError: as `select`.
    """
    return {layer: stacked.adapter for layer, stacked in concatenate(bank, selection).items()}
