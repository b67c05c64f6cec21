"""LoRA files of known factors, under the names of several tools, for tests."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from seqlora_core.bank import lora_file
from seqlora_core.model.adapters import Adapter


def update(adapter: Adapter) -> torch.Tensor:
    return adapter.A @ adapter.B.mT


def random_adapters(bank, ranks=(1, 2, 3), seed: int = 0) -> dict[str, Adapter]:
    """Different ranks from layer to layer, as tools that resize LoRAs write."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: Adapter.from_factors(
            torch.randn(shape.out, ranks[index % len(ranks)], generator=generator),
            torch.randn(shape.width, ranks[index % len(ranks)], generator=generator),
        )
        for index, (layer, shape) in enumerate(bank.manifest.layers.items())
    }


def write(path, adapters, name_of, up="lora_up.weight", down="lora_down.weight", metadata=None, **more) -> Path:
    tensors = dict(more)
    for layer, adapter in adapters.items():
        A, B = adapter.factors
        tensors[f"{name_of(layer)}{up}"], tensors[f"{name_of(layer)}{down}"] = A.contiguous(), B.mT.contiguous()
    save_file(tensors, path, metadata)
    return path


def kohya(layer: str) -> str:
    return f"{lora_file.kohya_name(layer)}."
