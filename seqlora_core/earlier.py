"""The earlier concepts as part of the model that a new one is trained on: all of them, or a selection a picture.

(ours) Eq. 4 has all of them.  A concept that is always trained so leans on them, and is not itself in another
selection.  On subsets every other picture of the training is seen with all of them, and each of the others with a
random selection of its own; the share of the concepts that is chosen for it runs evenly from none to all.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .composition import sum_adapters
from .layers import Adapter
from .randomness import named_generator

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill the interval evenly however many are taken


def selections(seed: int, first: int, pictures: int, concepts: int) -> Tensor:
    """[pictures, concepts], True where a picture is seen with a concept.

    A pure function of the seed and the picture's place in the training, `first` and following: so a resumed training
    sees what an uninterrupted one sees.
    """
    return torch.stack([_selection(seed, place, concepts) for place in range(first, first + pictures)])


def _selection(seed: int, place: int, concepts: int) -> Tensor:
    if place % 2 == 0:
        return torch.ones(concepts, dtype=torch.bool)
    share = (place // 2 * _GOLDEN) % 1
    return torch.rand(concepts, generator=named_generator(seed, "selection", place)) < share


class EarlierConcepts:
    """Their sum, with a switch for each concept and picture.

    Attributes:
        adapters: one a layer, all concepts side by side (see `sum_adapters`).
        gates: [pictures, sum of ranks] by layer, False where a picture of the batch is without a column; empty while
            every picture has all (see `layers.attached`).
    """

    def __init__(self, parts: Sequence[Mapping[str, Adapter]]) -> None:
        self.adapters = sum_adapters([(part, 1.0) for part in parts])
        self.gates: dict[str, Tensor] = {}
        self._owners = {
            layer: torch.tensor(
                [owner for owner, part in enumerate(parts) if layer in part for _ in range(part[layer].A.shape[1])],
                device=adapter.A.device,
            )
            for layer, adapter in self.adapters.items()
        }

    def show(self, selections: Tensor | None) -> None:
        """Until the next call the model has these concepts: [pictures, concepts] on its device, or all where None."""
        self.gates.clear()
        if selections is not None:
            self.gates.update((layer, selections[:, owners]) for layer, owners in self._owners.items())
