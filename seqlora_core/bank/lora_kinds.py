"""What a file is that is no LoRA for SD1.5's attention layers, from its keys, shapes and metadata."""

import re
from collections.abc import Iterable, Mapping

from ..model.sd15 import LayerShape
from ..tensor_file import TensorFile
from .lora_keys import TEXT_ENCODER, Parts, flat_name

_SAID = (  # in kohya's or the Stability specification's metadata
    ("xl", "SDXL"),
    ("sd_v2", "Stable Diffusion 2"),
    ("diffusion-v2", "Stable Diffusion 2"),
    ("diffusion-3", "Stable Diffusion 3"),
    ("sd3", "Stable Diffusion 3"),
    ("flux", "Flux"),
)
_SECOND_TEXT_ENCODER = ("lora_te2", "text_encoder_2")
_DEEPER = re.compile(
    r".*(?:input|output|down|up|middle|mid)_block.+transformer_blocks[._][1-9].*"
)  # SD1.5 has one transformer block in each place
_CONTEXT_WIDTHS = {1024: "Stable Diffusion 2", 1280: "SDXL", 2048: "SDXL"}
_NAMED = (  # in flat layer names of models that share no attention layer with SD1.5
    (
        re.compile(r".*(?:single_transformer_blocks|single_blocks|double_blocks)_\d"),
        "a LoRA for Flux or a model like it",
    ),
    (re.compile(r".*joint_blocks_\d"), "a LoRA for Stable Diffusion 3"),
    (re.compile(r".*motion_modules_|.*temporal_transformer"), "a motion module or motion LoRA for AnimateDiff"),
    (re.compile(r"lora_controlnet"), "a Control-LoRA"),
    (re.compile(r"control_model_|controlnet_"), "a ControlNet"),
    (re.compile(r"image_proj_|ip_adapter_"), "an IP-Adapter"),
    (re.compile(r".*(?:down|up|input|output|middle)_?blocks?_"), ""),  # a UNet's layers, but no attention
    (
        re.compile(r".*(?:blocks|layers)_\d+_"),
        "a LoRA for a transformer model, such as Stable Diffusion 3, Wan or Qwen-Image",
    ),
)
_LYCORIS = (
    ("dora_scale", "a DoRA"),
    ("hada_", "a LoHa (LyCORIS)"),
    ("lokr_", "a LoKr (LyCORIS)"),
    ("oft_", "an OFT (LyCORIS)"),
    ("a1.weight", "a GLoRA (LyCORIS)"),
    ("mid", "a LoRA with a CP decomposition (LyCORIS)"),
    ("diff", "a difference of whole weights"),
    ("set_weight", "a set of whole weights"),
)
_LORA_PARTS = {"up", "down", "mid", "alpha", "dora_scale", "diff", "diff_b"}
_EMBEDDING_NAMES = {"emb_params", "clip_l", "clip_g", "string_to_param"}


def other_model(
    file: TensorFile, parts: Parts, found: Mapping[str, str], layers: Mapping[str, LayerShape]
) -> str | None:
    """Say which model the file is for, if it is one whose LoRAs share names with SD1.5's."""
    said = " ".join(file.metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture")).lower()
    for text, model in _SAID:
        if text in said:
            return model
    if file.metadata.get("ss_v2") == "True":
        return "Stable Diffusion 2"
    if any(name.startswith(_SECOND_TEXT_ENCODER) or _DEEPER.match(name) for name in parts.keys() - found):
        return "SDXL"
    for name, layer in found.items():
        if layer.endswith(("attn2.to_k", "attn2.to_v")) and "down" in parts[name]:
            width = (file.shapes[parts[name]["down"]] or (0,))[-1]
            if width != layers[layer].width and width in _CONTEXT_WIDTHS:
                return _CONTEXT_WIDTHS[width]
    return None


def what_it_is(file: TensorFile, parts: Parts) -> str:
    """Say what a file is that changes none of the base's attention layers, with what to do about it."""
    kinds = {part for own in parts.values() for part in own}
    is_lora = any(kind in _LORA_PARTS or kind.startswith(("hada_", "lokr_", "oft_")) for kind in kinds)
    if not file.shapes:
        return "holds no tensors: download it again"
    if all(name.startswith(TEXT_ENCODER) for name in parts) and is_lora:
        return "changes the text encoder only, and a bank holds attention layers of the UNet: choose another LoRA"
    if not is_lora and _is_embedding(file):
        return "is a textual inversion (an embedding), not a LoRA: use it by its name in prompts"
    for pattern, kind in _NAMED:
        if kind and any(pattern.match(flat_name(name)) for name in parts):
            return f"is {kind}, and changes no attention layer of this bank's base model: {_ADVICE}"
        if not kind and any(pattern.match(flat_name(name)) for name in parts):
            break
    if not is_lora and any(
        key.startswith(("model.diffusion_model.", "down_blocks.", "cond_stage_model.")) for key in file
    ):
        return "is a full model (a checkpoint), not a LoRA: choose a LoRA file"
    if not is_lora:
        return f"holds no LoRA that SeqLoRA knows: {_ADVICE}"
    return f"changes no attention layer of this bank's base model: {_ADVICE}"


_ADVICE = "choose a LoRA of Stable Diffusion 1.5"


def _is_embedding(file: TensorFile) -> bool:
    names = {key.rsplit(".", 1)[-1] for key in file}
    few = len(file.shapes) <= 3 and all(1 <= len(shape) <= 2 for shape in file.shapes.values())
    return few and (bool(names & _EMBEDDING_NAMES) or not any(key.endswith((".weight", ".bias")) for key in file))


def not_plain(own: Iterable[str]) -> str:
    """Say what kind of adapter has these parts."""
    for beginning, kind in _LYCORIS:
        if any(part.startswith(beginning) for part in own):
            return kind
    return (
        "half of a LoRA (one of its two factors is missing)" if {"up", "down"} & set(own) else "another kind of adapter"
    )
