"""Reading reference images: formats, orientation, transparency, size and captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import UserError
from .prompts import template_prompts

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Reference:
    """One reference image, 8-bit RGB, with the prompts to train it with; `caption` is the file's own, or empty."""

    image: Image.Image
    prompts: tuple[str, ...]
    source: str
    caption: str = ""


def read_folder(folder: Path | str, subject: str, shorter_side: int | None = None) -> list[Reference]:
    """All images of a folder (not of those below it), sorted by name.

    Args:
        subject: "TOKEN CLASS", put into the templates of images that have no caption `.txt` beside them.
        shorter_side: as the images are read, those with a longer one are scaled down to it.

    Raises:
        UserError: there is no such folder, no image in it, or one that cannot be read.
    """
    paths = image_files(folder)
    captions = [_caption(path) for path in paths]
    return [
        Reference(_read(path, shorter_side), (caption,) if caption else template_prompts(subject), str(path), caption)
        for path, caption in zip(paths, captions, strict=True)
    ]


def image_files(folder: Path | str) -> list[Path]:
    """The files that `read_folder` reads.

    Raises:
        UserError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give a folder of images ({', '.join(SUFFIXES)}).")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise UserError(f"There are no images in {folder}: put some {', '.join(SUFFIXES)} files there.")
    return paths


def _caption(path: Path) -> str:
    caption_file = path.with_suffix(".txt")
    if not caption_file.is_file():
        return ""
    try:
        return caption_file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The caption {caption_file} is not readable text: save it as UTF-8.") from error


def _read(path: Path, shorter_side: int | None) -> Image.Image:
    image = read_image(path)
    least = min(image.size)
    if shorter_side is None or least <= shorter_side:
        return image
    return image.resize(tuple(round(side * shorter_side / least) for side in image.size), Image.Resampling.LANCZOS)


def read_image(path: Path) -> Image.Image:
    """One image as 8-bit RGB: turned as its EXIF says, transparency on white, 16-bit scaled down.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as file:
            file.load()
            return to_rgb(ImageOps.exif_transpose(file))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} cannot be read: replace it or take it out of the folder.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB."""
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit gray: Pillow's own conversion clips at 255
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def fit(image: Image.Image, resolution: int, square: bool, multiple: int) -> Image.Image:
    """Scale the shorter side to `resolution`; cut the middle square, or else only to multiples of `multiple`."""
    if square:
        return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    scale = resolution / min(image.size)
    size = tuple(max(resolution, round(side * scale) // multiple * multiple) for side in image.size)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as [N, 3, H, W] in -1..1."""
    values = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # [N, H, W, 3], uint8
    return values.permute(0, 3, 1, 2).float() / 127.5 - 1
