"""Stock LoRA files: kohya key names, so that ComfyUI's LoraLoader, diffusers and other tools load them unchanged."""

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..data.prompts import shorten
from ..data.words import NO_WORDS, Words
from ..errors import UserError
from ..model.adapters import Adapter
from ..model.sd15 import SD15
from ..tensor_file import TensorFile
from .embedding_file import bundle, is_bundled

_PARTS = ("lora_up.weight", "lora_down.weight", "alpha")
_LARGEST_ALPHA = 1e30


def kohya_name(layer: str) -> str:
    """Return the key prefix of a layer given by its canonical name."""
    return "lora_unet_" + layer.replace(".", "_")


@lru_cache(maxsize=1024)
def canonical_name(prefix: str) -> str | None:
    """Invert `kohya_name`; None for anything except an SD1.5 attention projection."""
    match = SD15.kohya_layer.fullmatch(prefix)
    if not match:
        return None
    block, attention, depth, attn, projection = match.groups()
    block = re.sub(r"_blocks_", "_blocks.", block)
    return f"{block}.attentions.{attention}.transformer_blocks.{depth}.{attn}.to_{projection.replace('_', '.')}"


def to_state_dict(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Name kohya's three keys per layer: `lora_up [m, r]` = A, `lora_down [r, n]` = B^T, `alpha` = r (a scale of 1)."""
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
    """Return the adapters by canonical layer name, with the file's alpha multiplied into A.

    Raises:
        UserError: a key is not one of an SD1.5 attention layer, its parts are missing or do not fit, or a number is not
            finite.
    """
    adapters = {}
    keys = [key for key in tensors if not is_bundled(key)]  # the words in it are read by `embedding_file`
    unknown = next((key for key in keys if key.split(".", 1)[-1] not in _PARTS), None)
    if unknown is not None:
        raise UserError(f"The LoRA holds {shorten(unknown)}, which is not part of a plain LoRA.")
    for prefix in dict.fromkeys(key.split(".")[0] for key in sorted(keys)):
        layer = canonical_name(prefix)
        if layer is None:
            raise UserError(f"The LoRA holds {shorten(prefix)}, which is not an SD1.5 attention layer.")
        try:
            up, down = tensors[f"{prefix}.lora_up.weight"], tensors[f"{prefix}.lora_down.weight"]
        except KeyError as error:
            raise UserError(f"The LoRA is incomplete: {error.args[0]} is missing.") from error
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise UserError(
                f"The LoRA's {prefix!r} has shapes that do not fit: {list(up.shape)} and {list(down.shape)}."
            )
        adapters[layer] = scaled_adapter(up, down, tensors.get(f"{prefix}.alpha"), prefix)
    return adapters


def scaled_adapter(up: Tensor, down: Tensor, alpha: Tensor | float | None, name: str) -> Adapter:
    """Join up [m, r] and down [r, n] with alpha / r multiplied into up; float32.

    Args:
        alpha: a tensor as files hold it, or a number; None is r, as other tools take it.
        name: of the layer, for messages.

    Raises:
        UserError: the rank is 0, alpha is not one finite number other than 0, or the product is not finite.
    """
    rank = down.shape[0]
    if rank == 0 or not up.numel() or not down.numel():
        raise UserError(
            f"{name} has rank {rank} and the shapes {list(up.shape)} and {list(down.shape)}: it is damaged."
        )
    scale = 1.0 if alpha is None else alpha_value(alpha, name) / rank
    up, down = up.float(), down.float()
    if scale != 1:  # thousands of copies of a large bank's factors
        up = up * scale
    # The largest entry of up @ down is at most this; a file of factors that overflow float32 would give black images.
    largest = rank * math.prod(float(torch.linalg.vector_norm(factor, math.inf)) for factor in (up, down))
    if not largest <= torch.finfo(torch.float32).max:
        raise UserError(f"{name} holds numbers that are not finite or too large to multiply: the file is damaged.")
    return Adapter(up, down)


def alpha_value(alpha: Tensor | float, name: str) -> float:
    """Read a LoRA's alpha.

    Raises:
        UserError: it is not one finite number other than 0.
    """
    values = alpha.flatten().tolist() if isinstance(alpha, Tensor) and alpha.numel() <= 2 else [alpha]
    if len(values) != 1 or isinstance(values[0], Tensor):
        raise UserError(f"{name} has an alpha of several values or of none: the file is damaged, download it again.")
    value = values[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST_ALPHA:
        raise UserError(f"{name} has the alpha {str(value)[:20]}, which is not a finite number: the file is damaged.")
    if value == 0:
        raise UserError(f"{name} has the alpha 0, so the file changes nothing there: choose another file.")
    return float(value)


def serialize(adapters: Mapping[str, Adapter], metadata: Mapping[str, str], words: Words = NO_WORDS) -> bytes:
    """Return the bytes of a LoRA file.

    Args:
        words: learned words that the file carries as well (see `embedding_file.bundle`).
    """
    return save({**to_state_dict(adapters), **bundle(words)}, dict(metadata))


def deserialize(content: bytes, source: str) -> dict[str, Adapter]:
    """Return the adapters in the bytes of a LoRA file.

    Raises:
        UserError: it is not a LoRA for SD1.5's attention layers, or is damaged; names `source`.
    """
    try:
        return from_state_dict(TensorFile.of(content, "the file"))
    except UserError as error:
        raise UserError(f"{source} cannot be read as a LoRA of a SeqLoRA bank: {error}") from error


def read(path: Path) -> dict[str, Adapter]:
    """Return the adapters in a LoRA file; one that is something else is refused without being loaded.

    Raises:
        UserError: as `deserialize`.
    """
    try:
        return from_state_dict(TensorFile.open(path))
    except UserError as error:
        raise UserError(f"{path} cannot be read as a LoRA of a SeqLoRA bank: {error}") from error


def metadata(title: str, trigger: str, base_name: str, rank: int, extra: Mapping[str, object]) -> dict[str, str]:
    """Return the header that LoRA managers show (kohya's ss_*, modelspec.*), with `extra` as JSON under `seqlora.*`."""
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
