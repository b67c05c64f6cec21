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

from safetensors import SafetensorError, safe_open

from ..errors import UserError
from .sd15 import BETA_END, BETA_START, SD15, TIMESTEPS, unsupported_input

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_TEXT = "cond_stage_model.transformer.text_model."
_OLDER_TEXT = re.compile(r"cond_stage_model\.transformer\.(?=(?:embeddings|encoder|final_layer_norm)\.)")
_CLIP_HEAD_WIDTH = 64
_VELOCITY_SETTING = re.compile(r"""^\s*parameterization:\s*["']?v["']?\s*(?:#.*)?$""", re.MULTILINE)
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"

Shapes = Mapping[str, tuple[int, ...]]


def load_single_file(path: Path, tokenizer: str | None) -> Any:
    """Load a `StableDiffusionPipeline` from a checkpoint file.

    Args:
        path: a `.safetensors` file.
        tokenizer: a folder with CLIP's tokenizer; None takes the folder `tokenizer` next to the file, or downloads it.

    Raises:
        UserError: the file cannot be read, or is not SD1.5 (the message names the kind of model).
    """
    from diffusers import StableDiffusionPipeline

    named, metadata = _read_header(path)
    shapes = {_OLDER_TEXT.sub(_TEXT, key): shape for key, shape in named.items()}
    _refuse_others(path, shapes, metadata)
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
        except (KeyError, ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{path} cannot be loaded as a {SD15.name} checkpoint: {error}") from error


def _read_header(path: Path) -> tuple[Shapes, Mapping[str, str]]:
    """Return the shape of every tensor, and the file's own metadata."""
    if path.suffix.lower() != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file: convert the checkpoint first (other formats can run code)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: download it again.") from error


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
    elif not first:
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
    return settings.is_file() and bool(_VELOCITY_SETTING.search(settings.read_text("utf-8", errors="replace")))


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
    with safe_open(path, framework="pt") as file:
        weights = {_OLDER_TEXT.sub("", key): file.get_tensor(key) for key in file.keys() if _OLDER_TEXT.match(key)}  # noqa: SIM118
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
    blocks = {int(m[1]) for m in (re.match(rf"{_UNET}input_blocks\.(\d+)\.", key) for key in shapes) if m}
    samplers = sorted(
        int(m[1]) for m in (re.match(rf"{_UNET}input_blocks\.(\d+)\.0\.op\.weight", k) for k in shapes) if m
    )
    per_level = samplers[0] - 1 if samplers else len(blocks) - 1
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
    return 1 + max(int(match[1]) for match in (re.match(pattern, key) for key in shapes) if match)
