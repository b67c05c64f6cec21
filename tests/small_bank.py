"""A bank of four narrow layers, and concepts of random factors for it."""

import torch

from seqlora_core import subspace
from seqlora_core.bank import Bank, BaseIdentity, NewConcept
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import LayerShape

LAYERS = {
    f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_{p}": LayerShape(16, 8) for p in ("q", "k", "v", "out.0")
}
BASE = BaseIdentity("tiny", "f" * 32)


def concept(name: str, seed: int = 0, rank: int = 2, bank: Bank | None = None, **more) -> NewConcept:
    """Random factors; with a bank, orthogonal to what is in it."""
    generator = torch.Generator().manual_seed(seed)
    Q = bank.refresh().occupied() if bank else {layer: subspace.empty(16) for layer in LAYERS}
    adapters = {
        layer: Adapter.from_factors(
            torch.randn(8, rank, generator=generator), subspace.random_basis(Q[layer], rank, generator).float()
        )
        for layer in LAYERS
    }
    return NewConcept(name, f"sks{seed}", "dog", rank, "seqlora", adapters, **more)
