"""A large bank of random concepts with orthogonal bases, for the benchmarks."""

import torch

from seqlora_core.bank import Bank, NewConcept
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import in_preset

RANK = 4


def fill(bank: Bank, count: int, preset: str = "all") -> None:
    """Add concepts whose bases are columns of one random orthogonal matrix per layer, until the layer is full.

    Args:
        preset: the layers that they adapt.
    """
    generator = torch.Generator().manual_seed(0)
    columns = {
        width: torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        for width in {shape.width for shape in bank.manifest.layers.values()}
    }
    for index in range(count):
        taken = slice(index * RANK, (index + 1) * RANK)
        adapters = {
            layer: Adapter.from_factors(
                torch.randn(shape.out, RANK, generator=generator) / 100, columns[shape.width][:, taken]
            )
            for layer, shape in bank.manifest.layers.items()
            if taken.stop <= shape.width and in_preset(layer, preset)
        }
        bank.add(NewConcept(f"concept {index}", f"sks{index}", "thing", RANK, "seqlora", adapters))
