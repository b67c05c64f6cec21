"""LoRA files of other tools, read as adapters of SD1.5's attention layers.

A key is `<prefix><layer><ending>`.  Layers are named as diffusers or the original SD1.5 does, with dots or underscores;
prefixes and endings are those of kohya, LyCORIS, diffusers (three generations of it), PEFT and ComfyUI.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..model.adapters import Adapter, update_norm
from ..model.sd15 import LayerShape, original_names

_FACTOR = re.compile(
    r"(?P<layer>.+?)(?:\.lora_linear_layer\.|\.lora\.|_lora\.|\.lora_)(?P<part>up|down|mid|A|B)(?:\.default)?(?:\.weight)?"
)
_OTHER_PART = re.compile(r"(?P<layer>.+?)\.(?P<part>alpha|[a-z_]+\d?(?:_[ab])?(?:\.weight)?)")
_PARTS = {"up": "up", "B": "up", "down": "down", "A": "down", "mid": "mid", "alpha": "alpha"}
_BESIDE_FACTORS = ("diff", "diff_b")  # what ComfyUI's own tools add to the weight, and to the bias
_KINDS = ("text encoder", "convolution", "other")
_TEXT_ENCODER = ("lora_te", "text_encoder", "text_model")
_SECOND_TEXT_ENCODER = ("lora_te2", "text_encoder_2")
_UNET_PREFIX = re.compile(r"(?:lora_unet_|lycoris_|unet[._]|diffusion_model[._])")
_DEEPER = re.compile(
    r".*(?:input|output|down|up|middle|mid)_block.+transformer_blocks[._][1-9].*"
)  # SD1.5 has one transformer block in each place
_CONTEXT_WIDTHS = {1024: "Stable Diffusion 2", 1280: "SDXL", 2048: "SDXL"}


@dataclass(frozen=True)
class ForeignLora:
    """What of a file a bank can hold.

    Attributes:
        adapters: by canonical layer name, float32, the file's alpha multiplied into A; layers that change nothing are
            not among them.
        left_out: kind -> how many layers of it the file changes besides.
        partly: how many of the adapters' layers the file changes by more than factors, which is left out, too.
        share: the adapters' part of the file's change of the UNet, |dW| over |dW of all its layers| (Frobenius norms).
        alpha_known: whether the file tells its alpha; without, it is taken as the rank, as other tools do.
    """

    adapters: dict[str, Adapter]
    left_out: dict[str, int]
    partly: int
    share: float
    alpha_known: bool


def read(path: Path, layers: Mapping[str, LayerShape]) -> ForeignLora:
    """Read a LoRA file for a base model with these layers.

    Raises:
        UserError: it cannot be read, is for another model, is no plain LoRA, or changes none of the layers.
    """
    tensors, metadata = _load(path)
    parts, known = _group(tensors), _names(layers)
    more = _take_out_more_than_factors(parts)
    found = {
        name: known[_flat(name)] for name, own in parts.items() if _flat(name) in known and own.keys() != {"diff_b"}
    }
    if other := _other_model(parts, metadata, found, layers):
        raise UserError(f"{path.name} is a LoRA for {other}, not for Stable Diffusion 1.5: choose an SD1.5 LoRA.")
    settings = _peft_settings(path, metadata)
    adapters = {layer: _adapter(path, name, parts[name], layers[layer], settings) for name, layer in found.items()}
    adapters = {layer: adapter for layer, adapter in adapters.items() if update_norm(adapter) > 0}
    if not adapters:
        raise UserError(
            f"{path.name} changes no attention layer of this bank's base model: choose a LoRA of Stable Diffusion 1.5."
        )
    rest = {name: own for name, own in parts.items() if name not in found}
    counts = Counter(_kind(name, own) for name, own in rest.items())
    besides = [_flattened(name, own, settings) for name, own in rest.items() if _kind(name, own) != _KINDS[0]]
    return ForeignLora(
        adapters=adapters,
        left_out={kind: counts[kind] for kind in _KINDS},
        partly=sum(name in more for name, layer in found.items() if layer in adapters),
        share=_share(adapters.values(), filter(None, besides)),
        alpha_known=bool(settings) or all("alpha" in parts[name] for name in found),
    )


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix != ".safetensors":
        raise UserError(f"{path.name} is not a .safetensors file, and nothing else is read: convert it first.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as a LoRA: {error}") from error


def _group(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Layer's name in the file -> part (`up`, `down`, `alpha`, ...) -> tensor."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")
        match = _FACTOR.fullmatch(name) or _OTHER_PART.fullmatch(name)
        layer, part = (match["layer"], match["part"]) if match else (name, "unknown")
        parts.setdefault(layer, {})[_PARTS.get(part, part)] = tensor
    return parts


def _take_out_more_than_factors(parts: Mapping[str, dict[str, Tensor]]) -> set[str]:
    """Reduce layers that have both factors to those; returns the names of those that had more."""
    changed = set()
    for name, own in parts.items():
        if {"up", "down"} <= own.keys() and (more := own.keys() & set(_BESIDE_FACTORS)):
            changed.add(name)
            for part in more:
                del own[part]
    return changed


def _names(layers: Iterable[str]) -> dict[str, str]:
    """Flat name in either layout -> canonical name."""
    originals = original_names(layers)
    return {name.replace(".", "_"): layer for layer in originals for name in (layer, originals[layer])}


def _flat(name: str) -> str:
    """A layer's name in a file without its prefix, with underscores."""
    bare = _UNET_PREFIX.sub("", name, count=1) if _UNET_PREFIX.match(name) else name
    bare = bare.replace(".processor.", ".").replace(".", "_")  # diffusers' first files named the attention processor
    return f"{bare}_0" if bare.endswith("_to_out") else bare


def _other_model(
    parts: Mapping, metadata: Mapping[str, str], found: Mapping[str, str], layers: Mapping[str, LayerShape]
) -> str | None:
    """Which model the file is for, if it is one whose LoRAs share names with SD1.5's."""
    said = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    if "xl" in said or any(
        name.startswith(_SECOND_TEXT_ENCODER) or _DEEPER.match(name) for name in parts.keys() - found
    ):
        return "SDXL"
    for name, layer in found.items():
        if layer.endswith(("attn2.to_k", "attn2.to_v")) and "down" in parts[name]:
            width = parts[name]["down"].shape[-1]
            if width != layers[layer].width and width in _CONTEXT_WIDTHS:
                return _CONTEXT_WIDTHS[width]
    return None


def _adapter(path: Path, name: str, own: Mapping[str, Tensor], shape: LayerShape, settings: Mapping) -> Adapter:
    if not {"up", "down"} <= own.keys() or own.keys() - {"up", "down", "alpha"}:
        kinds = ", ".join(sorted(own.keys() - {"alpha"}))
        raise UserError(
            f"{path.name} is not a plain LoRA ({name} has {kinds}), so it is no sum of directions: choose a plain one."
        )
    adapter = _flattened(name, own, settings)
    if adapter is None or adapter.widths != shape:
        raise UserError(
            f"{path.name} does not fit the bank's base model: {name} has the shapes {list(own['up'].shape)} and "
            f"{list(own['down'].shape)}, and the model's layer maps {shape.width} to {shape.out} values."
        )
    if not (adapter.up.isfinite().all() and adapter.down.isfinite().all()):
        raise UserError(f"{path.name} holds numbers that are not finite in {name}: the file is damaged.")
    return adapter


def _flattened(name: str, own: Mapping[str, Tensor], settings: Mapping) -> Adapter | None:
    """up and down as A [m, r] and B [n, r], a convolution's kernel as further inputs; None if it is no plain LoRA."""
    if own.keys() - {"alpha"} != {"up", "down"} or min(own["up"].ndim, own["down"].ndim) < 2:
        return None
    up, down = own["up"].float().flatten(1), own["down"].float().flatten(1)
    rank = down.shape[0]
    if up.shape[1] != rank:
        return None
    alpha = float(own["alpha"]) if "alpha" in own else _peft_alpha(name, rank, settings)
    return Adapter(up * (alpha / rank), down)


def _share(taken: Iterable[Adapter], besides: Iterable[Adapter]) -> float:
    """The Frobenius norm of what was taken over that of everything."""
    part, rest = (math.fsum(update_norm(adapter) ** 2 for adapter in adapters) for adapters in (taken, besides))
    return math.sqrt(part / (part + rest))


def _kind(name: str, own: Mapping[str, Tensor]) -> str:
    if name.startswith(_TEXT_ENCODER):
        return _KINDS[0]
    is_convolution = any(tensor.ndim == 4 and tensor.shape[-1] > 1 for tensor in own.values())
    return _KINDS[1] if is_convolution else _KINDS[2]


def _peft_settings(path: Path, metadata: Mapping[str, str]) -> dict:
    """PEFT keeps alpha apart from the tensors: diffusers in the file's metadata, PEFT itself in a file beside it."""
    try:
        if "lora_adapter_metadata" in metadata:
            found = dict(json.loads(metadata["lora_adapter_metadata"]))
            return {key.removeprefix("unet."): value for key, value in found.items() if key.startswith("unet.")}
        beside = path.parent / "adapter_config.json"
        if path.stem == "adapter_model" and beside.is_file():
            return dict(json.loads(beside.read_text("utf-8")))
    except (TypeError, ValueError, OSError) as error:
        raise UserError(f"The settings that belong to {path.name} cannot be read: {error}") from error
    return {}


def _peft_alpha(name: str, rank: int, settings: Mapping) -> float:
    patterns = settings.get("alpha_pattern") or {}
    special = next((value for pattern, value in patterns.items() if name.endswith(pattern)), None)
    alpha = settings.get("lora_alpha", rank) if special is None else special
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)
