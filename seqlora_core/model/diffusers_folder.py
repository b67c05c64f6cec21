"""Checks of a diffusers folder before anything of it is loaded.

diffusers and transformers load an incomplete folder without an error: a tokenizer without vocabulary is empty, and
weights that are missing are random.
"""

import json
import re
from pathlib import Path

import torch

from ..errors import UserError
from ..tensor_file import TensorFile

_TOKENIZER = ("tokenizer.json", "vocab.json")  # either; the second needs merges.txt
_MOST_CONFIG = 2**20  # bytes
_MODELS = ("unet", "vae", "text_encoder")
_WEIGHTS = ("*.safetensors", "*.bin")
_OLDER_NAMES = (  # of the first releases; diffusers and transformers convert them
    (re.compile(r"^text_model\."), ""),
    (re.compile(r"\.query\."), ".to_q."),
    (re.compile(r"\.key\."), ".to_k."),
    (re.compile(r"\.value\."), ".to_v."),
    (re.compile(r"\.proj_attn\."), ".to_out.0."),
)


def check_folder(path: Path) -> None:
    """Check that a folder has all parts of a Stable Diffusion 1.5 pipeline, and every weight of its models.

    Raises:
        UserError: something is missing (names it), or a file of weights is damaged.
    """
    tokenizer = path / "tokenizer"
    found = next((name for name in _TOKENIZER if (tokenizer / name).is_file()), None)
    if found is None or (found == "vocab.json" and not (tokenizer / "merges.txt").is_file()):
        raise _incomplete(path, "the tokenizer (tokenizer/vocab.json and merges.txt)")
    for part, config in (("scheduler", "scheduler_config.json"), *((model, "config.json") for model in _MODELS)):
        if not (path / part / config).is_file():
            raise _incomplete(path, f"{part}/{config}")
        _check_object(path / part / config)
    for part in _MODELS:
        files = [file for pattern in _WEIGHTS for file in sorted((path / part).glob(pattern))]
        if not files:
            raise _incomplete(path, f"the weights of the {part} (a .safetensors file in {part})")
        if files[0].suffix == ".safetensors" and (missing := _missing(path / part, part, files)):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise _incomplete(path, f"{missing[0]}{more} in {part}")


def _check_object(config: Path) -> None:
    try:
        with open(config, "rb") as file:
            content = json.loads(file.read(_MOST_CONFIG))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{config} is damaged: download the base model again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{config} is damaged: download the base model again.")


def _missing(folder: Path, part: str, files: list[Path]) -> list[str]:
    """The names of weights that the part's model has and its files lack."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    keys = {_newer(key) for file in files if file.suffix == ".safetensors" for key in TensorFile.open(file)}
    with torch.device("meta"):  # shapes without memory
        if part == "text_encoder":
            model = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
        else:
            kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
            model = kind.from_config(kind.load_config(folder))
    return [name for name in model.state_dict() if _newer(name) not in keys]


def _newer(key: str) -> str:
    for older, newer in _OLDER_NAMES:
        key = older.sub(newer, key)
    return key


def _incomplete(path: Path, what: str) -> UserError:
    return UserError(f"The diffusers folder {path} lacks {what}: download it again.")
