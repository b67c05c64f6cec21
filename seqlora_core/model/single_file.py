"""Load single-file checkpoints in SD1.5's original layout with diffusers, without downloading a configuration.

diffusers converts such a file if it has the configuration of every component.  For SD1.5's topology the configuration
follows from the shapes of the weights, also for models that are narrower or shallower than the published one.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, first_line
from ..tensor_file import TensorFile
from .sd15 import BETA_END, BETA_START, SD15, TIMESTEPS, unsupported_input

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_TEXT = "cond_stage_model.transformer.text_model."
_OLDER_TEXT = re.compile(r"cond_stage_model\.transformer\.(?=(?:embeddings|encoder|final_layer_norm)\.)")
_CLIP_HEAD_WIDTH = 64
_MOST_PARTS = 64  # blocks, levels or layers of one kind; SD1.5 has 12 at the most
_MOST_SETTINGS = 2**20  # bytes of a .yaml file
_UNREADABLE = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    OSError,
)
_VELOCITY_SETTING = re.compile(r"""^\s*parameterization:\s*["']?v["']?\s*(?:#.*)?$""", re.MULTILINE)
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"

Shapes = Mapping[str, tuple[int, ...]]


def load_single_file(path: Path, tokenizer: str | None) -> Any:
    """Load a `StableDiffusionPipeline` from a checkpoint file.

    What the file is and whether it is complete is known from its header, before any weight is read.

    Args:
        path: a `.safetensors` file.
        tokenizer: a folder with CLIP's tokenizer; None takes the folder `tokenizer` next to the file, or downloads it.

    Raises:
        UserError: the file cannot be read, is not SD1.5 (the message names the kind of model), or lacks weights.
    """
    from diffusers import StableDiffusionPipeline

    named, shapes = check_header(path)
    with tempfile.TemporaryDirectory() as folder:
        _write_configs(Path(folder), shapes)
        try:
            diffusers_knows_names = any(key.startswith(_TEXT) for key in named)
            components = {} if diffusers_knows_names else {"text_encoder": _older_text_encoder(path, shapes)}
            return StableDiffusionPipeline.from_single_file(
                str(path),
                config=folder,
                tokenizer=_load_tokenizer(tokenizer, path),
                **components,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
                local_files_only=True,
            )
        except _UNREADABLE as error:
            raise UserError(
                f"{path} cannot be loaded as a {SD15.name} checkpoint ({first_line(error)}): download it again."
            ) from error


def check_header(path: Path) -> tuple[Shapes, Shapes]:
    """Check what a file is and that it is complete, by its header alone.

    Returns:
        The shape of every tensor by its key in the file, and by the key that current checkpoints have.

    Raises:
        UserError: as `load_single_file`.
    """
    named, metadata = _read_header(path)
    shapes = {_OLDER_TEXT.sub(_TEXT, key): shape for key, shape in named.items()}
    _refuse_others(path, shapes, metadata)
    _check_complete(path, shapes)
    return named, shapes


def _read_header(path: Path) -> tuple[Shapes, Mapping[str, str]]:
    """Return the shape of every tensor, and the file's own metadata."""
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file: convert the checkpoint first (other formats can run code)."
        )
    file = TensorFile.open(path)
    return file.shapes, file.metadata


def _check_complete(path: Path, shapes: Shapes) -> None:
    """Compare the file's weights with those that models of its configuration have, without making any of them.

    Raises:
        UserError: weights are missing, or have other shapes.
    """
    try:
        missing = _missing(shapes)
    except KeyError as error:  # a weight that a configuration is read from
        missing = [str(error.args[0])]
    except _UNREADABLE as error:
        raise UserError(
            f"{path} is not a complete Stable Diffusion 1.5 checkpoint ({first_line(error)}): download it again."
        ) from error
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{path} is not a complete Stable Diffusion 1.5 checkpoint, because it lacks {missing[0]}{more}, or "
            "has it in another shape: download it again."
        )


def _missing(shapes: Shapes) -> list[str]:
    """The weights, by diffusers' names, that the file lacks or has in other shapes."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):  # shapes without memory
        file = {key: torch.empty(shape) for key, shape in shapes.items()}
        unet = UNet2DConditionModel.from_config(unet_config(shapes))
        vae = AutoencoderKL.from_config(vae_config(shapes))
        text = CLIPTextModel(CLIPTextConfig.from_dict(text_config(shapes)))
        converted = {
            "UNet": (unet, convert_ldm_unet_checkpoint(dict(file), dict(unet.config))),
            "VAE": (vae, convert_ldm_vae_checkpoint(dict(file), dict(vae.config))),
            "text encoder": (text, {key.removeprefix(_TEXT): weight for key, weight in file.items()}),
        }
    return [
        f"the {part}'s {name}"
        for part, (model, weights) in converted.items()
        for name, weight in model.state_dict().items()
        if (found := weights.get(name.removeprefix("text_model."))) is None or found.shape != weight.shape
    ]


def _refuse_others(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> None:
    first = shapes.get(f"{_UNET}input_blocks.0.0.weight", ())
    problem = None
    if any(key.startswith("conditioner.embedders.") for key in shapes):
        problem = "an SDXL model"
    elif any(key.startswith("cond_stage_model.model.") for key in shapes):
        problem = "a Stable Diffusion 2.x model"
    elif any(
        key.startswith(("model.diffusion_model.joint_blocks.", "model.diffusion_model.double_blocks."))
        for key in shapes
    ):
        problem = "a transformer model (SD3 or Flux)"
    elif any(".lora_down." in key or ".lora_A." in key for key in shapes):
        problem = "a LoRA, not a base model"
    elif len(first) != 4:
        problem = "not a checkpoint with a UNet in SD1.5's layout"
    elif unsupported := unsupported_input(first[1]):
        problem = unsupported
    elif not any(key.startswith(_TEXT) for key in shapes) or not any(key.startswith(_VAE) for key in shapes):
        problem = "a checkpoint without text encoder or VAE"
    elif _predicts_velocity(path, shapes, metadata):
        problem = "a v-prediction model"
    if problem:
        raise UserError(f"{path} is {problem}, which SeqLoRA cannot train on: give a full {SD15.name} checkpoint.")


def _predicts_velocity(path: Path, shapes: Shapes, metadata: Mapping[str, str]) -> bool:
    """Return whether the file, or a .yaml next to it, declares v-prediction; the weights themselves do not show it."""
    if "v_pred" in shapes or metadata.get("modelspec.prediction_type", "").startswith("v"):
        return True
    settings = path.with_suffix(".yaml")
    if not settings.is_file():
        return False
    with open(settings, encoding="utf-8", errors="replace") as file:
        return bool(_VELOCITY_SETTING.search(file.read(_MOST_SETTINGS)))


def _load_tokenizer(folder: str | None, checkpoint: Path) -> Any:
    from transformers import CLIPTokenizer

    neighbor = checkpoint.parent / "tokenizer"
    source = folder or (str(neighbor) if neighbor.is_dir() else CLIP_TOKENIZER)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"CLIP's tokenizer was not found in {source}: give --tokenizer a folder with its vocab.json and merges.txt."
        ) from error
    tokenizer.model_max_length = min(tokenizer.model_max_length, SD15.prompt_tokens)  # not in those two files
    return tokenizer


def _older_text_encoder(path: Path, shapes: Shapes) -> Any:
    """Load the text encoder of a checkpoint that names its weights as the first releases did."""
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = CLIPTextModel(CLIPTextConfig.from_dict(text_config(shapes)))
    file = TensorFile.open(path)
    weights = {_OLDER_TEXT.sub("", key): file[key] for key in file if _OLDER_TEXT.match(key)}
    # Some releases of transformers prefix the names with "text_model.".
    encoder.load_state_dict({name: weights[name.removeprefix("text_model.")] for name in encoder.state_dict()})
    return encoder


def _write_configs(folder: Path, shapes: Shapes) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    scheduler = {
        "_class_name": "PNDMScheduler",
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": TIMESTEPS,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "unet" / "config.json", unet_config(shapes))
    _write_json(folder / "vae" / "config.json", vae_config(shapes))
    _write_json(folder / "text_encoder" / "config.json", text_config(shapes))


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def unet_config(shapes: Shapes) -> dict:
    """Derive the config of diffusers' `UNet2DConditionModel` from a UNet in the original layout."""
    blocks = {int(m[1][:9]) for m in (re.match(rf"{_UNET}input_blocks\.(\d+)\.", key) for key in shapes) if m}
    samplers = sorted(
        int(m[1][:9]) for m in (re.match(rf"{_UNET}input_blocks\.(\d+)\.0\.op\.weight", k) for k in shapes) if m
    )
    per_level = samplers[0] - 1 if samplers else len(blocks) - 1
    if not 0 < per_level <= _MOST_PARTS or len(samplers) > _MOST_PARTS:
        raise ValueError("its UNet has an impossible number of blocks")
    channels, attends = [], []
    for level in range(len(samplers) + 1):
        index = 1 + level * (per_level + 1)
        channels.append(shapes[f"{_UNET}input_blocks.{index}.0.out_layers.3.weight"][0])
        attends.append(f"{_UNET}input_blocks.{index}.1.norm.weight" in shapes)
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes[f"{_UNET}input_blocks.0.0.weight"][1],
        "out_channels": shapes[f"{_UNET}out.2.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": per_level,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": shapes[f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": SD15.attention_heads,
        "transformer_layers_per_block": _count(shapes, rf"{_UNET}middle_block\.1\.transformer_blocks\.(\d+)\."),
        "use_linear_projection": len(shapes[f"{_UNET}middle_block.1.proj_in.weight"]) == 2,
        "sample_size": SD15.native_size // SD15.vae_scale_factor,
    }


def vae_config(shapes: Shapes) -> dict:
    """Derive the config of diffusers' `AutoencoderKL` from a VAE in the original layout."""
    levels = _count(shapes, rf"{_VAE}encoder\.down\.(\d+)\.")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            shapes[f"{_VAE}encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, rf"{_VAE}encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes[f"{_VAE}post_quant_conv.weight"][1],
        "scaling_factor": SD15.latent_scaling,
    }


def text_config(shapes: Shapes) -> dict:
    """Derive the config of transformers' `CLIPTextModel` from a text encoder in the original layout."""
    vocabulary, width = shapes[f"{_TEXT}embeddings.token_embedding.weight"]
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": shapes[f"{_TEXT}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, rf"{re.escape(_TEXT)}encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(width // _CLIP_HEAD_WIDTH, 1),
        "max_position_embeddings": shapes[f"{_TEXT}embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "eos_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 2,
    }


def _count(shapes: Shapes, pattern: str) -> int:
    """How many parts of a kind there are, as their numbers say."""
    numbers = {int(match[1][:9]) for match in (re.match(pattern, key) for key in shapes) if match}
    if not numbers:
        raise KeyError(f"every weight like {pattern}".replace("\\", "").replace("(d+)", "0"))
    if max(numbers) >= _MOST_PARTS:
        raise ValueError("it has an impossible number of layers")
    return 1 + max(numbers)
