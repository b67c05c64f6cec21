"""What a picture is measured with: all metrics are cosine similarities of embeddings, and no weights are downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from ..data.images import to_tensor
from ..errors import UserError
from ..hashing import fingerprint, sha256


class Metric(Protocol):
    """A named similarity.

    Attributes:
        name: for tables.
        to_text: whether `target` embeds the prompt instead of the reference pictures.
        weights: tells one set of weights, and how pictures are prepared for it, from another.
    """

    name: str
    to_text: bool
    weights: str

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [N, d]."""

    def embed_text(self, prompt: str) -> Tensor:
        """A unit vector [1, d]; only where `to_text` holds."""


def score(metric: Metric, pictures: Sequence[Image.Image], references: Sequence[Image.Image], prompt: str) -> float:
    """Mean cosine similarity of all pictures to all references, or to the prompt."""
    return similarity(metric, pictures, target(metric, references, prompt))


def target(metric: Metric, references: Sequence[Image.Image], prompt: str) -> Tensor:
    """What pictures are compared with: unit vectors [M, d]."""
    return metric.embed_text(prompt) if metric.to_text else metric.embed(references)


def similarity(metric: Metric, pictures: Sequence[Image.Image], to: Tensor) -> float:
    """Mean cosine similarity of all pictures to all vectors of a `target`."""
    return (metric.embed(pictures) @ to.T).mean().item()


class Identity:
    """The mini world's own (see `mini.identity`); 32 px pictures of the mini base alone."""

    name, to_text, weights = "identity", False, "mini"

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        from ..mini.identity import load_identity

        return load_identity()(to_tensor(pictures))


class Dino:
    """DINO (Caron et al., 2021) or DINOv2 (Oquab et al., 2023): the class token of a local transformers folder."""

    to_text = False

    def __init__(self, name: str, folder: Path, device: torch.device) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.name, self._device = name, device
        self._process, self._model = _load(folder, AutoImageProcessor, AutoModel, device)
        self.weights = _weights(folder, self._model)

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        side = self._process.size.get("height")
        if side:  # the folder of DINO names a square alone; photos would be squeezed into it
            pictures = [_middle(picture, side) for picture in pictures]
        inputs = self._process(images=list(pictures), return_tensors="pt").to(self._device)
        return functional.normalize(self._model(**inputs).last_hidden_state[:, 0], dim=1).cpu()


def _middle(picture: Image.Image, side: int) -> Image.Image:
    """The middle square as DINO's own evaluation takes it: of the shorter side scaled to 256, 224 pixels."""
    border = round(side / 14)
    scaled = ImageOps.fit(picture, (side + 2 * border,) * 2, Image.Resampling.BICUBIC)
    return ImageOps.crop(scaled, border)


class Clip:
    """CLIP-I and CLIP-T (Radford et al., 2021) from a local transformers folder."""

    def __init__(self, name: str, folder: Path, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.name, self.to_text, self._device = name, name == "clip-t", device
        self._process, self._model = _load(folder, CLIPProcessor, CLIPModel, device)
        self.weights = _weights(folder, self._model)

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self._process(images=list(pictures), return_tensors="pt").pixel_values.to(self._device)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self._model.visual_projection(pooled), dim=1).cpu()

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Tensor:
        inputs = self._process(text=[prompt], return_tensors="pt", truncation=True).to(self._device)
        pooled = self._model.text_model(**inputs).pooler_output
        return functional.normalize(self._model.text_projection(pooled), dim=1).cpu()


# Which class reads a metric's folder, and which kinds of model its weights may be, by transformers' names.
_CLIP, _DINO, _DINOV2 = (Clip, ("clip",)), (Dino, ("vit",)), (Dino, ("dinov2", "dinov2_with_registers"))
_KINDS = {"clip-i": _CLIP, "clip-t": _CLIP, "dino": _DINO, "dinov2": _DINOV2}


def load_metrics(requests: Sequence[str], base: str, device: torch.device) -> list[Metric]:
    """Each request is `identity`, or `NAME=FOLDER` with NAME one of clip-i, clip-t, dino, dinov2.

    Without any, the mini base is measured by `identity`.

    Raises:
        UserError: none is asked for, one is unknown or asked for twice, or its folder holds other weights or none.
    """
    requests = requests or (["identity"] if base == "mini" else [])
    if not requests:
        raise UserError(f"Name a metric with its weights: --metric NAME=FOLDER, with NAME one of {', '.join(_KINDS)}.")
    names = [request.partition("=")[0] for request in requests]
    if len(set(names)) < len(names):
        raise UserError("A metric is named twice: evaluate with other weights of it into another folder.")
    return [_load_metric(request, base, device) for request in requests]


def _load_metric(request: str, base: str, device: torch.device) -> Metric:
    name, _, folder = request.partition("=")
    if name == "identity":
        if base != "mini":
            raise UserError("The metric identity knows the mini base's pictures alone: name another one.")
        return Identity()
    if name not in _KINDS:
        raise UserError(f"There is no metric {name!r}: choose identity, {', '.join(_KINDS)}.")
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
        raise UserError(f"The folder {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return processor, model.eval().requires_grad_(False).to(device)


def _weights(folder: Path, model) -> str:
    settings = [file.read_bytes() for file in sorted(folder.glob("*.json"))]
    return sha256(b"".join([fingerprint(model.state_dict()).encode(), *settings]))[:32]
