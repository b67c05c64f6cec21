"""The keys of LoRA files: `<prefix><layer><ending>`.

Layers are named as diffusers or the original SD1.5 does, with dots or underscores.  Prefixes and endings are those of
kohya, LyCORIS, diffusers (four generations of it), PEFT and ComfyUI.
"""

import re
from collections.abc import Iterable, Mapping

from ..errors import UserError
from ..model.sd15 import original_names

_FACTOR = re.compile(
    r"(?P<layer>.+?)(?:\.lora_linear_layer\.|\.lora\.|_lora\.|\.lora_)(?P<part>up|down|mid|A|B)"
    r"(?:\.(?P<adapter>[^.]+))??(?P<ending>\.weight|\.bias)?"
)
_MAGNITUDE = re.compile(r"(?P<layer>.+?)\.lora_magnitude_vector(?:\.(?P<adapter>[^.]+))??(?:\.weight)?")
_OTHER_PART = re.compile(r"(?P<layer>.+?)\.(?P<part>alpha|[a-z_]+\d?(?:_[ab])?(?:\.weight)?)")
_PARTS = {"up": "up", "B": "up", "down": "down", "A": "down", "mid": "mid"}
_UNET_PREFIX = re.compile(r"(?:lora_unet_|lycoris_|(?:unet[._])+|(?:model[._])?diffusion_model[._])")
TEXT_ENCODER = ("lora_te", "text_encoder", "text_model")

Parts = dict[str, dict[str, str]]


def group(keys: Mapping[str, str], source: str) -> Parts:
    """Group keys by layer and part.

    Args:
        keys: what the key is called -> the key in the file.
        source: the file's name, for messages.

    Returns:
        The layer's name in the file -> part (`up`, `down`, `alpha`, ...) -> key.

    Raises:
        UserError: the file holds several adapters.
    """
    parts: Parts = {}
    adapters = set()
    for called, key in keys.items():
        layer, part, adapter = _split(called.removeprefix("base_model.model."))
        parts.setdefault(layer, {})[part] = key
        adapters.add(adapter)
    if len(named := sorted(adapters - {None})) > 1:
        raise UserError(f"{source} holds several adapters ({', '.join(named[:5])}): save each in a file of its own.")
    return parts


def _split(name: str) -> tuple[str, str, str | None]:
    """A key's layer, its part, and the name of PEFT's adapter."""
    if match := _FACTOR.fullmatch(name):
        part = _PARTS[match["part"]]
        return match["layer"], f"{part}_bias" if match["ending"] == ".bias" else part, match["adapter"]
    if match := _MAGNITUDE.fullmatch(name):
        return match["layer"], "dora_scale", match["adapter"]
    match = _OTHER_PART.fullmatch(name)
    return (match["layer"], match["part"], None) if match else (name, "unknown", None)


def layer_names(layers: Iterable[str]) -> dict[str, str]:
    """Map flat names in either layout to canonical names."""
    originals = original_names(layers)
    return {name.replace(".", "_"): layer for layer in originals for name in (layer, originals[layer])}


def flat_name(name: str) -> str:
    """Return a layer's name in a file without its prefix, with underscores."""
    bare = _UNET_PREFIX.sub("", name, count=1) if _UNET_PREFIX.match(name) else name
    bare = bare.replace(".processor.", ".").replace(".", "_")  # diffusers' first files named the attention processor
    return f"{bare}_0" if bare.endswith("_to_out") else bare
