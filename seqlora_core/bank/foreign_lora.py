"""LoRA files of other tools, read as adapters of SD1.5's attention layers."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..model.adapters import Adapter, update_norm
from ..model.sd15 import LayerShape
from ..tensor_file import TensorFile, check_is_file
from . import numbered_lora
from .embedding_file import is_bundled
from .lora_file import alpha_value, scaled_adapter
from .lora_keys import TEXT_ENCODER, Parts, flat_name, group, layer_names
from .lora_kinds import not_plain, other_model, what_it_is
from .weight_change import squared_norm

_BESIDE_FACTORS = {"diff", "diff_b", "up_bias"}  # what tools add to the weight, and to the bias
_KINDS = ("text encoder", "convolution", "other")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_MOST_SETTINGS = 2**20  # bytes of adapter_config.json
_MOST_RANK = 4096
_MOST_BYTES = 2**30  # of a layer that is only measured


@dataclass(frozen=True)
class ForeignLora:
    """What of a file a bank can hold.

    Attributes:
        adapters: by canonical layer name, float32, the file's alpha multiplied into A; without layers that change
            nothing.
        left_out: kind -> how many further layers of it the file changes.
        partly: how many of the adapters' layers the file changes by more than factors, which is left out, too.
        share: the adapters' part of the file's change of the UNet, |dW| over |dW of all its layers| (Frobenius norms),
            as far as that can be measured.
        uncounted: how many changes of UNet layers `share` leaves out, because a file alone does not say their size.
        alpha_known: whether the file states its alpha; without, it is taken as the rank, as other tools do.
    """

    adapters: dict[str, Adapter]
    left_out: dict[str, int]
    partly: int
    share: float
    alpha_known: bool
    uncounted: int = 0


NOTHING = ForeignLora({}, {}, 0, 1.0, True)  # of a file without a LoRA


def read(path: Path, layers: Mapping[str, LayerShape]) -> ForeignLora:
    """Read a LoRA file for a base model with these layers.

    Raises:
        UserError: it cannot be read, is for another model, is no plain LoRA, or changes none of the layers.
    """
    file = open_file(path).without(is_bundled)
    numbered = numbered_lora.is_numbered(file)
    keys = numbered_lora.named_keys(file.shapes, layers, path.name) if numbered else {key: key for key in file}
    parts, known = group(keys, path.name), layer_names(layers)
    found = {
        name: known[flat]
        for name, own in parts.items()
        if (flat := flat_name(name)) in known and own.keys() != {"diff_b"}
    }
    if other := other_model(file, parts, found, layers):
        raise UserError(f"{path.name} is a LoRA for {other}, not for Stable Diffusion 1.5: choose an SD1.5 LoRA.")
    if not found:
        raise UserError(f"{path.name} {what_it_is(file, parts)}.")
    settings = _peft_settings(path, file.metadata)
    adapters = {layer: _adapter(file, name, parts[name], layers[layer], settings) for name, layer in found.items()}
    adapters = {layer: adapter for layer, adapter in adapters.items() if update_norm(adapter) > 0}
    if not adapters:
        raise UserError(
            f"{path.name} changes nothing, because its factors of all attention layers are 0: choose another LoRA."
        )
    partly = sum(bool(parts[name].keys() & _BESIDE_FACTORS) for name, layer in found.items() if layer in adapters)
    counts = Counter(_kind(file, name, own) for name, own in parts.items() if name not in found)
    share, uncounted = _share(file, parts, found, adapters, settings)
    return ForeignLora(
        adapters=adapters,
        left_out={kind: counts[kind] for kind in _KINDS},
        partly=partly,
        share=share,
        alpha_known=numbered or bool(settings) or all("alpha" in parts[name] for name in found),
        uncounted=uncounted,
    )


def describe_share(share: float, uncounted: int) -> str:
    """Say which part of a file's change of the UNet was taken, and what that does not include."""
    percent = "more than 99%" if 0.995 <= share < 1 else f"{share:.0%}"
    if not uncounted:
        return f"What was taken makes {percent} of the file's change of the UNet."
    return (
        f"What was taken makes {percent} of what can be measured of the file's change of the UNet; "
        f"the size of {uncounted} further changes depends on the base model's weights."
    )


def open_file(path: Path) -> TensorFile:
    """Open a .safetensors file; says what is wrong with another.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    if path.is_dir():
        check_is_file(path)
    ending = path.suffix.lower()
    if ending in _PICKLES:
        raise UserError(
            f"{path.name} is a pickle ({ending}), which can run code, not a .safetensors file: convert it first."
        )
    if ending != ".safetensors":
        raise UserError(f"{path.name} is not a .safetensors file, and nothing else is read: convert it first.")
    return TensorFile.open(path)


def _adapter(
    file: TensorFile, name: str, keys: Mapping[str, str], shape: LayerShape, settings: Mapping[str, object]
) -> Adapter:
    kinds = keys.keys() - _BESIDE_FACTORS if {"up", "down"} <= keys.keys() else keys.keys()
    if kinds - {"alpha"} != {"up", "down"}:
        raise UserError(
            f"{file.source} is {not_plain(kinds)}, not a plain LoRA ({name}), and a bank holds sums of directions: "
            "choose a plain LoRA."
        )
    up, down = file.shapes[keys["up"]], file.shapes[keys["down"]]
    fits = min(len(up), len(down)) >= 2 and (down[1], up[0]) == shape and up[1] == down[0]
    if not fits or any(size != 1 for size in (*up[2:], *down[2:])):
        raise UserError(
            f"{file.source} does not fit the bank's base model: {name} has the shapes {list(up)} and {list(down)}, and "
            f"the model's layer maps {shape.width} to {shape.out} values: choose a LoRA of Stable Diffusion 1.5."
        )
    if not 0 < down[0] <= _MOST_RANK:
        raise UserError(f"{file.source} has rank {down[0]} in {name}: choose a LoRA of rank 1 to {_MOST_RANK}.")
    alpha = _small(file, keys["alpha"]) if "alpha" in keys else _peft_alpha(name, down[0], settings, file.source)
    return scaled_adapter(
        file[keys["up"]].flatten(1), file[keys["down"]].flatten(1), alpha, f"{file.source}, in {name},"
    )


def _small(file: TensorFile, key: str) -> Tensor:
    """An alpha, or one number too many of what should be an alpha."""
    if math.prod(file.shapes[key]) != 1:
        raise UserError(
            f"{file.source} has {math.prod(file.shapes[key])} values instead of one in {key}: the file is damaged."
        )
    return file[key]


def _share(
    file: TensorFile,
    parts: Parts,
    found: Mapping[str, str],
    adapters: Mapping[str, Adapter],
    settings: Mapping[str, object],
) -> tuple[float, int]:
    """The Frobenius norm of what was taken over that of everything that can be measured, and how much cannot."""
    taken = math.fsum(update_norm(adapter) ** 2 for adapter in adapters.values())
    rest, uncounted = [], 0
    for name, own in parts.items():
        left_out = {part: key for part, key in own.items() if name not in found or part in _BESIDE_FACTORS}
        if not left_out or name.startswith(TEXT_ENCODER):
            continue
        size = _squared_norm(file, name, left_out, settings)
        uncounted += size is None
        rest.append(size or 0.0)
    return math.sqrt(taken / (taken + math.fsum(rest))), uncounted


def _squared_norm(file: TensorFile, name: str, keys: Mapping[str, str], settings: Mapping[str, object]) -> float | None:
    shapes = {part: file.shapes[key] for part, key in keys.items()}
    if sum(math.prod(shape) for shape in shapes.values()) * 8 > _MOST_BYTES or 0 in (shapes.get("down") or (1,)):
        return None
    rank = shapes["down"][0] if shapes.get("down") else 1
    alpha = _peft_alpha(name, rank, settings, file.source) if settings else None
    return squared_norm({part: file[key] for part, key in keys.items()}, alpha)


def _kind(file: TensorFile, name: str, own: Mapping[str, str]) -> str:
    if name.startswith(TEXT_ENCODER):
        return _KINDS[0]
    kernels = (file.shapes[key] for key in own.values())
    return _KINDS[1] if any(len(shape) == 4 and shape[-1] > 1 for shape in kernels) else _KINDS[2]


def _peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    """PEFT stores alpha apart from the tensors: diffusers in the file's metadata, PEFT in a file of the same folder."""
    settings_file = path.parent / "adapter_config.json"
    try:
        if "lora_adapter_metadata" in metadata:
            found = _json_object(metadata["lora_adapter_metadata"])
            return {key.removeprefix("unet."): value for key, value in found.items() if key.startswith("unet.")}
        if path.stem == "adapter_model" and settings_file.is_file():
            if settings_file.stat().st_size > _MOST_SETTINGS:
                raise ValueError("adapter_config.json is too large")
            return _json_object(settings_file.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"The settings that belong to {path.name} cannot be read ({error}): save the LoRA again."
        ) from error
    return {}


def _json_object(text: str) -> dict[str, object]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _peft_alpha(name: str, rank: int, settings: Mapping[str, object], source: str) -> float | None:
    """Alpha as the files of kohya mean it; None where PEFT's settings do not have it."""
    patterns = settings.get("alpha_pattern")
    patterns = patterns if isinstance(patterns, dict) else {}
    special = (value for pattern, value in patterns.items() if name == pattern or name.endswith(f".{pattern}"))
    alpha = next(special, settings.get("lora_alpha"))
    if alpha is None:
        return None
    return alpha_value(alpha, f"{source}, in {name},") * (
        math.sqrt(rank) if settings.get("use_rslora") is True else 1.0
    )
