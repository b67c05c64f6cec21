"""Stable Diffusion 1.5's attention layers: which can be adapted, and what they are called.

A layer's canonical name is its path in diffusers' `UNet2DConditionModel`, whichever layout the UNet at hand has.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import nn

from ..errors import UserError

PROJECTIONS = {
    "all": r"attn[12]\.to_(q|k|v|out\.0)",
    "cross": r"attn2\.to_(q|k|v|out\.0)",
    "cross-kv": r"attn2\.to_(k|v)",
}
_PROJECTION = re.compile(r"(?P<block>.+)\.transformer_blocks\.(?P<depth>\d+)\.(?P<rest>attn[12]\.to_(?:q|k|v|out\.0))")
_ORIGINAL_BLOCK = re.compile(r"(?P<part>input_blocks|output_blocks)\.(?P<index>\d+)\.1|(?P<middle>middle_block)\.1")
_CANONICAL_BLOCK = re.compile(
    r"^(?:(?P<way>down|up)_blocks\.(?P<level>\d+)\.attentions\.(?P<position>\d+)|(?P<middle>mid_block\.attentions\.0))"
)


class LayerShape(NamedTuple):
    """The width of a layer's input (n, which limits how many directions it can hold) and of its output (m)."""

    width: int
    out: int


def find_layers(unet: nn.Module, preset: str = "all") -> dict[str, nn.Module]:
    """The attention projections of an SD1.5-topology UNet, by canonical name, in the UNet's own order.

    Args:
        unet: a UNet in diffusers' layout or in SD1.5's original one (`input_blocks...`).
        preset: `all`, `cross` (attn2 only) or `cross-kv` (its keys and values only).

    Raises:
        UserError: the UNet has no such layer.
    """
    modules = dict(unet.named_modules())
    names = {name: canonical for name, canonical in canonical_names(modules).items() if in_preset(canonical, preset)}
    if not names:
        raise UserError("This model has no SD1.5 attention layers to adapt: choose a Stable Diffusion 1.5 model.")
    return {canonical: modules[name] for name, canonical in names.items()}


def in_preset(layer: str, preset: str) -> bool:
    """Whether a preset of `find_layers` has the layer of that canonical name."""
    return re.fullmatch(rf".+\.{PROJECTIONS[preset]}", layer) is not None


def canonical_names(module_names: Iterable[str]) -> dict[str, str]:
    """Map the attention projections among `module_names` to their diffusers paths.

    The original layout counts residual blocks and samplers of all levels in one row, so the number of residual
    blocks a level is read from where the first downsampler stands.
    """
    module_names = list(module_names)
    downsamplers = [
        int(m[1]) for m in (re.fullmatch(r"input_blocks\.(\d+)\.0\.op", name) for name in module_names) if m
    ]
    inputs = [int(m[1]) for m in (re.match(r"input_blocks\.(\d+)\.", name) for name in module_names) if m]
    per_level = min(downsamplers, default=max(inputs, default=0) + 1) - 1
    names = {}
    for name in module_names:
        match = _PROJECTION.fullmatch(name)
        if match:
            block = _canonical_block(match["block"], per_level)
            names[name] = f"{block}.transformer_blocks.{match['depth']}.{match['rest']}"
    return names


def _canonical_block(block: str, per_level: int) -> str:
    match = _ORIGINAL_BLOCK.fullmatch(block)
    if not match:
        return block
    if match["middle"]:
        return "mid_block.attentions.0"
    index = int(match["index"])
    if match["part"] == "input_blocks":  # block 0 is conv_in; a downsampler closes each level
        level, position = divmod(index - 1, per_level + 1)
        return f"down_blocks.{level}.attentions.{position}"
    level, position = divmod(index, per_level + 1)  # going up, a level has one residual block more
    return f"up_blocks.{level}.attentions.{position}"


def original_names(layers: Iterable[str]) -> dict[str, str]:
    """Canonical name -> the layer's name in SD1.5's original layout, the inverse of `canonical_names`.

    Args:
        layers: canonical names; those of the way down must all be there, because their number a level is counted.
    """
    layers = list(layers)
    down = [int(m[1]) for m in (re.match(r"down_blocks\.\d+\.attentions\.(\d+)", layer) for layer in layers) if m]
    per_level = max(down, default=0) + 1
    return {layer: _CANONICAL_BLOCK.sub(lambda match: _original_block(match, per_level), layer) for layer in layers}


def _original_block(match: re.Match, per_level: int) -> str:
    if match["middle"]:
        return "middle_block.1"
    index = int(match["level"]) * (per_level + 1) + int(match["position"])
    return f"input_blocks.{index + 1}.1" if match["way"] == "down" else f"output_blocks.{index}.1"


def module_names(unet: nn.Module) -> dict[str, str]:
    """Canonical name -> the UNet's own name, of every adaptable layer."""
    return {canonical: name for name, canonical in canonical_names(dict(unet.named_modules())).items()}


def layer_shapes(layers: Mapping[str, nn.Module]) -> dict[str, LayerShape]:
    """Input and output widths of linear layers."""
    return {name: LayerShape(layer.in_features, layer.out_features) for name, layer in layers.items()}
