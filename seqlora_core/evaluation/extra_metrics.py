"""Metrics that need a package of their own: DreamSim, HPSv2 and HPSv3.

Each is imported when it is asked for, and reads a local folder: these packages download what they do not find, so
everything that they would look for is checked first.
"""

import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import UserError, first_line
from ..hashing import digest, fingerprint

# What a folder of DreamSim holds, by the kind of model, as the package downloads it.
_DREAMSIM = {
    "ensemble": (
        *("ensemble_lora/adapter_config.json", "dino_vitb16_pretrain.pth", "clip_vitb16_pretrain.pth.tar"),
        *("open_clip_vitb16_pretrain.pth.tar", "facebookresearch_dino_main", "checkpoints/dino_vitbase16_pretrain.pth"),
    ),
    "open_clip_vitb32": ("open_clip_vitb32_single_lora/adapter_config.json", "open_clip_vitb32_pretrain.pth.tar"),
    "clip_vitb32": ("clip_vitb32_single_lora/adapter_config.json", "clip_vitb32_pretrain.pth.tar"),
}
# HPSv2 is this CLIP model, fine-tuned.
_HPSV2_MODEL = "ViT-H-14"
_HPSV2_FILES = ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")
_HPSV3_FILE, _HPSV3_BASE = "HPSv3.safetensors", "Qwen2-VL-7B-Instruct"


class DreamSim:
    """DreamSim (Fu et al., 2023): 1 - its distance, the cosine of its centered embeddings."""

    name, to_text = "dreamsim", False

    def __init__(self, folder: Path, device: torch.device) -> None:
        package = _package("dreamsim", self.name)
        kinds = [kind for kind, files in _DREAMSIM.items() if all((folder / file).exists() for file in files)]
        if not kinds:
            raise UserError(
                f"The weights of dreamsim are not in {str(folder)!r}: with a network, fill it once by "
                "dreamsim.dreamsim(cache_dir=FOLDER), then give dreamsim=FOLDER."
            )
        self._device = device
        with _reading(folder):
            arguments = {"cache_dir": str(folder), "dreamsim_type": kinds[0], "device": str(device)}
            self._model, self._prepare = package.dreamsim(pretrained=True, normalize_embeds=True, **arguments)
        self.weights = f"{kinds[0]} {fingerprint(self._model.state_dict())}"

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.cat([self._prepare(image) for image in images]).to(self._device)
        return functional.normalize(self._model.embed(pixels), dim=1).cpu()


class HPSv2:
    """HPSv2 (Wu et al., 2023): the cosine of image and prompt in a CLIP model that was trained on preferences.

    The model is loaded by open_clip, from which the package hpsv2 is copied; its release 1.2.0 on PyPI lacks the
    tokenizer's vocabulary.  The folder's file decides between version 2.0 and 2.1.
    """

    name, to_text = "hpsv2", True

    def __init__(self, folder: Path, device: torch.device) -> None:
        package = _package("open_clip", self.name)
        files = [folder / name for name in _HPSV2_FILES if (folder / name).is_file()]
        if len(files) != 1:
            raise UserError(
                f"The weights of hpsv2 must be one file in {str(folder)!r}, {' or '.join(_HPSV2_FILES)}: take one from "
                "the repository xswu/HPSv2 on Hugging Face."
            )
        self._device = device
        with _reading(folder):
            # As in the published code, images are scaled to the longer side, which makes no difference to square ones.
            self._model, _, self._prepare = package.create_model_and_transforms(
                _HPSV2_MODEL, image_resize_mode="longest"
            )
            self._model.load_state_dict(torch.load(files[0], map_location="cpu", weights_only=True)["state_dict"])
            self._tokenize = package.get_tokenizer(_HPSV2_MODEL)
        self._model.eval().requires_grad_(False).to(device)
        self.weights = fingerprint(self._model.state_dict())

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self._prepare(image) for image in images]).to(self._device)
        return self._model.encode_image(pixels, normalize=True).cpu()

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Tensor:
        return self._model.encode_text(self._tokenize([prompt]).to(self._device), normalize=True).cpu()


class HPSv3:
    """HPSv3 (Ma et al., 2025): the mean of the reward that a vision-language model gives an image for its prompt."""

    name, to_text = "hpsv3", True

    def __init__(self, folder: Path, device: torch.device) -> None:
        package = _package("hpsv3", self.name)
        checkpoint, base = folder / _HPSV3_FILE, folder / _HPSV3_BASE
        if not checkpoint.is_file() or not (base / "config.json").is_file():
            raise UserError(
                f"The weights of hpsv3 are not in {str(folder)!r}: put {_HPSV3_FILE} of the repository MizzenAI/HPSv3 "
                f"there, and Qwen/{_HPSV3_BASE} in its folder {_HPSV3_BASE}."
            )
        published = Path(package.__file__).parent / "config" / "HPSv3_7B.yaml"
        # Its settings name the base model, which would be downloaded.
        settings = re.sub(r"(?m)^model_name_or_path:.*$", "", published.read_text("utf-8"))
        with _reading(folder), tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / published.name
            local.write_text(f"model_name_or_path: {json.dumps(str(base.absolute()))}\n{settings}", "utf-8")
            self._inferencer = package.HPSv3RewardInferencer(
                config_path=str(local), checkpoint_path=str(checkpoint), device=str(device)
            )
        self.weights = digest([_HPSV3_FILE, checkpoint.stat().st_size])

    @torch.no_grad()
    def rate(self, images: Sequence[Image.Image], prompt: str) -> Tensor:
        rewards = [self._inferencer.reward(image_paths=[image], prompts=[prompt])[0] for image in images]
        return torch.stack([reward[0] for reward in rewards]).float().cpu()  # of mean and standard deviation


def _package(package: str, metric: str) -> ModuleType:
    extra = "hpsv3" if package == "hpsv3" else "metrics"
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f'The metric {metric} needs the package {error.name or package}: python -m pip install -e ".[{extra}]"'
        ) from error
    except (ImportError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"The package {package} of the metric {metric} cannot be imported ({first_line(error)}): install it in an "
            f'environment of its own, python -m pip install -e ".[cli,{extra}]".'
        ) from error


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn what a package says of damaged or other weights into one sentence; what it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # pickles and packages may raise anything
        raise UserError(f"The weights in {folder} cannot be loaded: {first_line(error)}") from error


EXTRA_METRICS = {metric.name: metric for metric in (DreamSim, HPSv2, HPSv3)}
