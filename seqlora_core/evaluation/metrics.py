"""What a picture is measured with: all metrics are cosine similarities of embeddings, and no weights are downloaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import UserError
from ..images import to_tensor


class Metric(Protocol):
    """A named similarity.

    Attributes:
        name: for tables.
        to_text: whether `target` embeds the prompt instead of the reference pictures.
    """

    name: str
    to_text: bool

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [N, d]."""

    def embed_text(self, prompt: str) -> Tensor:
        """A unit vector [1, d]; only where `to_text` holds."""


def score(metric: Metric, pictures: Sequence[Image.Image], references: Sequence[Image.Image], prompt: str) -> float:
    """Mean cosine similarity of all pictures to all references, or to the prompt."""
    target = metric.embed_text(prompt) if metric.to_text else metric.embed(references)
    return (metric.embed(pictures) @ target.T).mean().item()


class Identity:
    """The mini world's own (see `mini.identity`); 32 px pictures of the mini base alone."""

    name, to_text = "identity", False

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        from ..mini.identity import load_identity

        return load_identity()(to_tensor(pictures))


class Dino:
    """DINO (Caron et al., 2021) or DINOv2 (Oquab et al., 2023): the class token of a local transformers folder."""

    to_text = False

    def __init__(self, name: str, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.name = name
        self._process, self._model = _load(folder, AutoImageProcessor, AutoModel)

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        inputs = self._process(images=list(pictures), return_tensors="pt")
        return functional.normalize(self._model(**inputs).last_hidden_state[:, 0], dim=1)


class Clip:
    """CLIP-I and CLIP-T (Radford et al., 2021) from a local transformers folder."""

    def __init__(self, name: str, folder: Path) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.name, self.to_text = name, name == "clip-t"
        self._process, self._model = _load(folder, CLIPProcessor, CLIPModel)

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        pixels = self._process(images=list(pictures), return_tensors="pt").pixel_values
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self._model.visual_projection(pooled), dim=1)

    @torch.no_grad()
    def embed_text(self, prompt: str) -> Tensor:
        inputs = self._process(text=[prompt], return_tensors="pt", truncation=True)
        pooled = self._model.text_model(**inputs).pooler_output
        return functional.normalize(self._model.text_projection(pooled), dim=1)


_KINDS = {"clip-i": Clip, "clip-t": Clip, "dino": Dino, "dinov2": Dino}


def load_metrics(requests: Sequence[str], base: str) -> list[Metric]:
    """Each request is `identity`, or `NAME=FOLDER` with NAME one of clip-i, clip-t, dino, dinov2.

    Without any, the mini base is measured by `identity`.

    Raises:
        UserError: none is asked for, one is unknown, or its folder cannot be read.
    """
    requests = requests or (["identity"] if base == "mini" else [])
    if not requests:
        raise UserError(f"Name a metric with its weights: --metric NAME=FOLDER, with NAME one of {', '.join(_KINDS)}.")
    return [_load_metric(request, base) for request in requests]


def _load_metric(request: str, base: str) -> Metric:
    name, _, folder = request.partition("=")
    if name == "identity":
        if base != "mini":
            raise UserError("The metric identity knows the mini base's pictures alone: name another one.")
        return Identity()
    if name not in _KINDS:
        raise UserError(f"There is no metric {name!r}: choose identity, {', '.join(_KINDS)}.")
    if not Path(folder, "config.json").is_file():
        raise UserError(f"The weights of {name} are not in {folder!r}: give a transformers folder, {name}=FOLDER.")
    return _KINDS[name](name, Path(folder))


def _load(folder: Path, processor_class, model_class):
    try:
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        model = model_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The folder {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return processor, model.eval().requires_grad_(False)
