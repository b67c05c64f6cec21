"""Banks for the tests of the nodes, made without training."""

import torch
from PIL import Image

from seqlora_core import subspace
from seqlora_core.bank import Bank, BaseIdentity, NewConcept
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import LayerShape

LAYERS = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k": LayerShape(320, 320)}


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


def make_bank(host, name: str, concepts: int = 12) -> Bank:
    """A bank of a base that no checkpoint is; its concepts have thumbnails, and do not overlap."""
    bank = Bank.open_or_create(host.folder / "models" / "seqlora" / name, BaseIdentity("a", "0" * 32), LAYERS)
    for number in range(len(bank.concepts), concepts):
        basis = torch.eye(320)[:, [number]]
        adapters = {layer: Adapter.from_factors(torch.zeros(shape.out, 1), basis) for layer, shape in LAYERS.items()}
        image = Image.new("RGB", (64, 64), (20 * number, 90, 200))
        word, loss = f"sks{number}", {"final_loss": 0.1}
        bank.add(NewConcept(f"subject {number}", word, "thing", 1, "seqlora", adapters, metrics=loss, thumbnail=image))
    return bank
