"""Stable Diffusion 1.5: its constants, its adaptable layers with their names, its noise schedule, and its checks.

A layer's canonical name is its path in diffusers' `UNet2DConditionModel`, whichever layout the UNet itself has.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from .architecture import Architecture

SD15 = Architecture(
    name="Stable Diffusion 1.5",
    pipeline="StableDiffusionPipeline",
    latent_channels=4,
    vae_scale_factor=8,
    latent_scaling=0.18215,
    native_size=512,
    text_width=768,
    prompt_tokens=77,
    attention_heads=8,
    presets={
        "all": r"attn[12]\.to_(q|k|v|out\.0)",
        "cross": r"attn2\.to_(q|k|v|out\.0)",
        "cross-kv": r"attn2\.to_(k|v)",
    },
    self_attention=re.compile(r"(.+\.attn1)\.to_[qkv]"),
    text_layer=re.compile(r".+\.attn2\.to_[kv]"),
    kohya_layer=re.compile(
        r"lora_unet_((?:down|up)_blocks_\d+|mid_block)"
        r"_attentions_(\d+)_transformer_blocks_(\d+)_(attn[12])_to_(q|k|v|out_0)"
    ),
    kohya_version="sd_v1",
    modelspec="stable-diffusion-v1/lora",
)
BETA_START, BETA_END, TIMESTEPS = 0.00085, 0.012, 1000  # the scaled-linear noise schedule
INPAINTING_CHANNELS = 9  # input channels of the inpainting variant: latents, masked latents and mask
SD2_TEXT_WIDTH = 1024

_PROJECTION = re.compile(rf"(?P<block>.+)\.transformer_blocks\.(?P<depth>\d+)\.(?P<rest>{SD15.presets['all']})")
_ORIGINAL_BLOCK = re.compile(r"(?P<part>input_blocks|output_blocks)\.(?P<index>\d+)\.1|(?P<middle>middle_block)\.1")
_CANONICAL_BLOCK = re.compile(
    r"^(?:(?P<way>down|up)_blocks\.(?P<level>\d+)\.attentions\.(?P<position>\d+)|(?P<middle>mid_block\.attentions\.0))"
)


class LayerShape(NamedTuple):
    """The widths of a linear layer.

    Attributes:
        width: n, the width of its input, which bounds how many directions the layer can hold.
        out: m, the width of its output.
    """

    width: int
    out: int


def find_layers(unet: nn.Module, preset: str = "all") -> dict[str, nn.Module]:
    """Find the attention projections of a UNet with SD1.5's topology.

    Args:
        unet: a UNet in diffusers' layout or in SD1.5's original one (`input_blocks...`).
        preset: `all`, `cross` (attn2 only) or `cross-kv` (its keys and values only).

    Returns:
        The layers by canonical name, in the UNet's own order.

    Raises:
        UserError: the UNet has no such layer.
    """
    modules = dict(unet.named_modules())
    names = {name: canonical for name, canonical in canonical_names(modules).items() if in_preset(canonical, preset)}
    if not names:
        raise UserError(f"This model has no SD1.5 attention layers to adapt: choose a {SD15.name} model.")
    return {canonical: modules[name] for name, canonical in names.items()}


def receives_text(layer: str) -> bool:
    """Return whether a layer receives the text embeddings; all others receive image features."""
    return SD15.text_layer.fullmatch(layer) is not None


def in_preset(layer: str, preset: str) -> bool:
    """Return whether a preset of `find_layers` includes the layer with that canonical name."""
    return re.fullmatch(rf".+\.{SD15.presets[preset]}", layer) is not None


def canonical_names(module_names: Iterable[str]) -> dict[str, str]:
    """Map the attention projections among `module_names` to their canonical names.

    The original layout numbers the residual blocks and samplers of all levels in one sequence, so the number of
    residual blocks per level follows from the position of the first downsampler.
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
    level, position = divmod(index, per_level + 1)  # on the way up each level has one more residual block
    return f"up_blocks.{level}.attentions.{position}"


def original_names(layers: Iterable[str]) -> dict[str, str]:
    """Map canonical names to the names in SD1.5's original layout: the inverse of `canonical_names`.

    Args:
        layers: canonical names; they must include all layers of the way down, whose number per level is counted.
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
    """Map the canonical name of every adaptable layer to its name in this UNet."""
    return {canonical: name for name, canonical in canonical_names(dict(unet.named_modules())).items()}


def layer_shapes(layers: Mapping[str, nn.Module]) -> dict[str, LayerShape]:
    """Return the input and output widths of linear layers."""
    return {name: LayerShape(layer.in_features, layer.out_features) for name, layer in layers.items()}


def sd15_alphas_cumprod() -> Tensor:
    """Compute SD1.5's noise schedule, [1000] float32: the square roots of its betas are evenly spaced."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, dim=0).float()


def unsupported_input(channels: int) -> str | None:
    """Name the kind of model whose UNet has this many input channels; None for SD1.5's own number."""
    if channels == INPAINTING_CHANNELS:
        return "an inpainting model"
    return None if channels == SD15.latent_channels else f"a model with {channels} input channels"


def unsupported_kind(unet_config, prediction_type: str) -> str | None:
    """Name the kind of model that a diffusers UNet belongs to if it is not SD1.5; None if it is.

    Args:
        unet_config: the config of a `UNet2DConditionModel`.
        prediction_type: the scheduler's.
    """
    if problem := unsupported_input(unet_config.in_channels):
        return problem
    if unet_config.addition_embed_type is not None:
        return "an SDXL model"
    if unet_config.use_linear_projection or unet_config.cross_attention_dim == SD2_TEXT_WIDTH:
        return "a Stable Diffusion 2.x model"
    return None if prediction_type == "epsilon" else f"a model with {prediction_type} prediction"
