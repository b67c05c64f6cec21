"""Banks for the tests of the nodes, made without training."""

import torch

from seqlora_core import subspace
from seqlora_core.bank import Bank, NewConcept
from seqlora_core.model.adapters import Adapter


def occupy(bank: Bank, name: str, free: int, widths: tuple[int, ...] = (320, 640, 768)) -> None:
    """Add a concept that leaves only `free` directions in every layer of these widths."""
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for layer, Q in bank.occupied().items():
        rank = Q.shape[0] - Q.shape[1] - free
        if Q.shape[0] in widths and rank > 0:
            B = subspace.random_basis(Q, rank, generator).float()
            adapters[layer] = Adapter.from_factors(torch.zeros(bank.manifest.layers[layer].out, rank), B)
    rank = max(adapter.B.shape[1] for adapter in adapters.values())
    bank.add(NewConcept(name, "sksbig", "thing", rank, "seqlora", adapters))
