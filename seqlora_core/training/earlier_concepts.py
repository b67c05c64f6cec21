"""The bank's earlier concepts as part of the model that a new one is trained on."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..model.adapters import Adapter, attach, sum_adapters
from ..model.sd15 import find_layers


class EarlierConcepts:
    """The sum of the earlier concepts, attached to the UNet for all images of a batch or for some of them.

    Args:
        concepts: the adapters of each, by canonical layer name.
    """

    def __init__(self, concepts: Iterable[Mapping[str, Adapter]] = (), device: torch.device | None = None) -> None:
        on_device = [({name: adapter.to(device) for name, adapter in own.items()}, 1.0) for own in concepts]
        self._sum = sum_adapters(on_device)
        self._row_weights: Tensor | None = None

    @contextmanager
    def attached(self, unet: nn.Module) -> Iterator[None]:
        """While the block lasts the UNet's outputs include the earlier concepts."""
        with attach(find_layers(unet), self._sum, lambda: self._row_weights):
            yield

    @contextmanager
    def in_images(self, with_earlier: Tensor | None) -> Iterator[None]:
        """While the block lasts, act only in those images of the batch, [b] of 0 and 1; None is all.

        A backward pass with gradient checkpointing belongs inside the block, since it runs layers again.
        """
        self._row_weights = with_earlier
        try:
            yield
        finally:
            self._row_weights = None
