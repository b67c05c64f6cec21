"""Metrics of images: cosine similarities of embeddings, and rewards.  No weights are downloaded.

Those that need a package of their own are in `extra_metrics`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from ..data.images import to_tensor
from ..errors import UserError, first_line
from ..hashing import fingerprint, sha256
from .extra_metrics import EXTRA_METRICS


class Metric(Protocol):
    """A named similarity.

    A metric that rates images for a prompt without embedding either has `rate(images, prompt)`, which returns [N],
    instead of the two methods here.

    Attributes:
        name: the metric's name in tables.
        to_text: whether images are compared with the prompt instead of the reference images.
        weights: a fingerprint of the weights and of how images are prepared for them.
    """

    name: str
    to_text: bool
    weights: str

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embed images as unit vectors [N, d]."""

    def embed_text(self, prompt: str) -> Tensor:
        """Embed a prompt as a unit vector [1, d]; only if `to_text` is true."""


def score(metric: Metric, images: Sequence[Image.Image], references: Sequence[Image.Image], prompt: str) -> float:
    """Compute the mean cosine similarity of all images to all references, or to the prompt, or their mean rating."""
    return similarity(metric, images, target(metric, references, prompt))


def target(metric: Metric, references: Sequence[Image.Image], prompt: str) -> Tensor | str:
    """Embed what images are compared with: unit vectors [M, d], or the prompt itself for metrics that rate images."""
    if hasattr(metric, "rate"):
        return prompt
    return metric.embed_text(prompt) if metric.to_text else metric.embed(references)


def similarity(metric: Metric, images: Sequence[Image.Image], to: Tensor | str) -> float:
    """Compute the mean cosine similarity of all images to all vectors of a `target`, or their mean rating for it."""
    if isinstance(to, str):
        return metric.rate(images, to).mean().item()
    return (metric.embed(images) @ to.T).mean().item()


class Identity:
    """The metric of the mini base (see `mini.identity`), for its 32 px images only."""

    name, to_text, weights = "identity", False, "mini"

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        from ..mini.identity import load_identity

        return load_identity()(to_tensor(images))


class Dino:
    """The class token of DINO (Caron et al., 2021), DINOv2 (Oquab et al., 2023) or DINOv3 (Siméoni et al., 2025).

    The model is in a transformers folder.
    """

    to_text = False

    def __init__(self, name: str, folder: Path, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.name, self._device = name, device
        self._process, self._model = _load(folder, AutoImageProcessor, AutoModel, device)
        self.weights = _weights(folder, self._model)

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        side = self._process.size.get("height")
        if side:  # the folders of DINO and DINOv3 only name a square, into which photos would be squeezed
            images = [_middle(image, side) for image in images]
        inputs = self._process(images=list(images), return_tensors="pt").to(self._device)
        return functional.normalize(self._model(**inputs).last_hidden_state[:, 0], dim=1).cpu()


def _middle(image: Image.Image, side: int) -> Image.Image:
    """Cut the central square as DINO's own evaluation does: 224 px, after the shorter side is scaled to 256 px."""
    border = round(side / 14)
    scaled = ImageOps.fit(image, (side + 2 * border,) * 2, Image.Resampling.BICUBIC)
    return ImageOps.crop(scaled, border)


class Clip:
    """CLIP-I or CLIP-T (Radford et al., 2021) from a local transformers folder.

    CLIP-I is the cosine of the embeddings of an image and of a reference image, CLIP-T that of an image and of its
    prompt, both projected into CLIP's common space and not scaled.  In the prompt of CLIP-T, the class word stands for
    the concept, because CLIP does not know the concept's own word.
    """

    def __init__(self, name: str, folder: Path, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.name, self.to_text, self._device = name, name == "clip-t", device
        self._process, self._model = _load(folder, CLIPProcessor, CLIPModel, device)
        self.weights = _weights(folder, self._model)

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self._process(images=list(images), return_tensors="pt").pixel_values.to(self._device)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self._model.visual_projection(pooled), dim=1).cpu()

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Tensor:
        inputs = self._process(text=[prompt], return_tensors="pt", truncation=True).to(self._device)
        pooled = self._model.text_model(**inputs).pooler_output
        return functional.normalize(self._model.text_projection(pooled), dim=1).cpu()


# Metric -> the class that loads its folder, and the kinds of model that it accepts, by transformers' names.
_CLIP, _DINO, _DINOV2 = (Clip, ("clip",)), (Dino, ("vit",)), (Dino, ("dinov2", "dinov2_with_registers"))
_KINDS = {"clip-i": _CLIP, "clip-t": _CLIP, "dino": _DINO, "dinov2": _DINOV2, "dinov3": (Dino, ("dinov3_vit",))}
_NAMES = (*_KINDS, *EXTRA_METRICS)


def load_metrics(requests: Sequence[str], base: str, device: torch.device) -> list[Metric]:
    """Load metrics.

    Args:
        requests: `identity`, or `NAME=FOLDER` with NAME one of clip-i, clip-t, dino, dinov2, dinov3, dreamsim, hpsv2,
            hpsv3.  If empty, the mini base is measured by `identity`.
        base: the base's name or path, as the user gave it.

    Raises:
        UserError: no metric is requested, one is unknown or requested twice, its folder holds no or other weights, or
            its package is not installed.
    """
    requests = requests or (["identity"] if base == "mini" else [])
    if not requests:
        raise UserError(f"Name a metric with its weights: --metric NAME=FOLDER, with NAME one of {', '.join(_NAMES)}.")
    names = [request.partition("=")[0] for request in requests]
    if len(set(names)) < len(names):
        raise UserError("A metric is named twice: evaluate it with other weights into another folder.")
    return [_load_metric(request, base, device) for request in requests]


def _load_metric(request: str, base: str, device: torch.device) -> Metric:
    name, _, folder = request.partition("=")
    if name == "identity":
        if base != "mini":
            raise UserError("The metric identity measures images of the mini base only: choose another one.")
        return Identity()
    if name not in _NAMES:
        raise UserError(f"There is no metric {name!r}: choose identity, {', '.join(_NAMES)}.")
    if name in EXTRA_METRICS:
        return EXTRA_METRICS[name](Path(folder), device)
    config = Path(folder, "config.json")
    if not config.is_file():
        raise UserError(f"The weights of {name} are not in {folder!r}: give a transformers folder, {name}=FOLDER.")
    metric, kinds = _KINDS[name]
    found = json.loads(config.read_text("utf-8")).get("model_type")
    if found not in kinds:
        raise UserError(f"{folder} holds a model of the kind {found!r}: {name} needs one of {', '.join(kinds)}.")
    return metric(name, Path(folder), device)


def _load(folder: Path, processor_class, model_class, device: torch.device):
    try:
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        model = model_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The folder {folder} cannot be loaded: {first_line(error)}") from error
    return processor, model.eval().requires_grad_(False).to(device)


def _weights(folder: Path, model) -> str:
    settings = [file.read_bytes() for file in sorted(folder.glob("*.json"))]
    return sha256(b"".join([fingerprint(model.state_dict()).encode(), *settings]))[:32]
