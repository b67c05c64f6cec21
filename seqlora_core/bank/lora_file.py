"""Stock LoRA files: kohya key names, so that ComfyUI's LoraLoader, diffusers and other tools load them unchanged."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import UserError
from ..model.adapters import Adapter
from ..model.sd15 import SD15


def kohya_name(layer: str) -> str:
    """The key prefix of a layer given by its canonical name."""
    return "lora_unet_" + layer.replace(".", "_")


@lru_cache(maxsize=1024)
def canonical_name(prefix: str) -> str | None:
    """The inverse of `kohya_name`; None for anything but an SD1.5 attention projection."""
    match = SD15.kohya_layer.fullmatch(prefix)
    if not match:
        return None
    block, attention, depth, attn, projection = match.groups()
    block = re.sub(r"_blocks_", "_blocks.", block)
    return f"{block}.attentions.{attention}.transformer_blocks.{depth}.{attn}.to_{projection.replace('_', '.')}"


def to_state_dict(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """kohya's three keys a layer: `lora_up [m, r]` = A, `lora_down [r, n]` = B^T and `alpha` = r (a scale of 1)."""
    tensors = {}
    for layer, adapter in adapters.items():
        prefix = kohya_name(layer)
        # Copies: factors may be views of one tensor, which safetensors refuses to store twice.
        tensors[f"{prefix}.lora_up.weight"] = (
            adapter.up.detach().float().cpu().clone(memory_format=torch.contiguous_format)
        )
        tensors[f"{prefix}.lora_down.weight"] = (
            adapter.down.detach().float().cpu().clone(memory_format=torch.contiguous_format)
        )
        tensors[f"{prefix}.alpha"] = torch.tensor(float(adapter.rank))
    return tensors


def from_state_dict(tensors: Mapping[str, Tensor]) -> dict[str, Adapter]:
    """Adapters by canonical layer name, with the file's alpha multiplied into A.

    Raises:
        UserError: a key is not one of an SD1.5 attention layer, or its parts are missing or do not fit.
    """
    adapters = {}
    for prefix in dict.fromkeys(key.split(".")[0] for key in sorted(tensors)):
        layer = canonical_name(prefix)
        if layer is None:
            raise UserError(f"The LoRA holds {prefix!r}, which is not an SD1.5 attention layer.")
        try:
            up, down = tensors[f"{prefix}.lora_up.weight"], tensors[f"{prefix}.lora_down.weight"]
        except KeyError as error:
            raise UserError(f"The LoRA is incomplete: {error.args[0]} is missing.") from error
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise UserError(
                f"The LoRA's {prefix!r} has shapes that do not fit: {list(up.shape)} and {list(down.shape)}."
            )
        alpha = tensors.get(f"{prefix}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        up = up.float() if scale == 1 else up.float() * scale  # thousands of copies of a large bank's factors
        adapters[layer] = Adapter(up, down.float())
    return adapters


def serialize(adapters: Mapping[str, Adapter], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a LoRA file."""
    return save(to_state_dict(adapters), dict(metadata))


def deserialize(content: bytes, source: str) -> dict[str, Adapter]:
    """Adapters from the bytes of a LoRA file.

    Raises:
        UserError: it is not a LoRA for SD1.5's attention layers; names `source`.
    """
    try:
        return from_state_dict(load(content))
    except (SafetensorError, UserError) as error:
        raise UserError(f"{source} cannot be read as a LoRA of a SeqLoRA bank: {error}") from error


def metadata(title: str, trigger: str, base_name: str, rank: int, extra: Mapping[str, object]) -> dict[str, str]:
    """The header that LoRA managers show (kohya's ss_*, modelspec.*), and `extra` as JSON under `seqlora.*`."""
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_base_model_version": SD15.kohya_version,
        "ss_sd_model_name": base_name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": SD15.modelspec,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        **{f"seqlora.{name}": json.dumps(value) for name, value in extra.items()},
    }
