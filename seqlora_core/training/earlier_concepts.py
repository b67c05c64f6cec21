"""The bank's earlier concepts as part of the model that a new one is trained on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        self._sum, self._device = sum_adapters(on_device), device
        self._rows: Tensor | None = None

    @contextmanager
    def attached(self, unet: nn.Module) -> Iterator[None]:
        """While the block lasts the UNet's outputs include the earlier concepts."""
        with attach(find_layers(unet), self._sum, lambda: self._rows):
            yield

    @contextmanager
    def in_images(self, with_earlier: Sequence[bool] | None) -> Iterator[None]:
        """While the block lasts, act only in those images of the batch; None is all.

        The other images cost nothing.  A backward pass with gradient checkpointing belongs inside the block, since it
        runs layers again.
        """
        if with_earlier is not None and not all(with_earlier):
            rows = torch.tensor([row for row, acts in enumerate(with_earlier) if acts], dtype=torch.long)
            self._rows = rows.to(self._device, non_blocking=True)
        try:
            yield
        finally:
            self._rows = None
