"""Reading image files: format, orientation, transparency and size; conversion to and from tensors."""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from .formats import FORMATS, MAX_METADATA, identify, read_regular, shown, with_small_metadata

MAX_FILE = 2**29  # bytes
MAX_PIXELS = 120_000_000  # above the largest common sensors (108 million); such an image takes 0.5 GB in memory
MAX_SIDE_RATIO = 10  # a crop scales the shorter side to the resolution, and the longer one along with it
_ORIENTATION = 0x0112


def read_image(path: Path) -> Image.Image:
    """Read one image as 8-bit RGB: turned as its EXIF says, transparency on white, 16-bit scaled down.

    Raises:
        UserError: it is no JPEG, PNG or WebP file, is too large to decode, or is damaged.
    """
    return decode_image(path)[0]


def decode_image(path: Path) -> tuple[Image.Image, list[str]]:
    """The image, and what to report of it: clauses whose subject is the file."""
    image, _, notes = _decode(path, with_alpha=False)
    return image, notes


def decode_with_alpha(path: Path) -> tuple[Image.Image, Image.Image | None, list[str]]:
    """The image, its alpha channel (see `alpha_of`), and what to report, as in `decode_image`."""
    return _decode(path, with_alpha=True)


def _decode(path: Path, with_alpha: bool) -> tuple[Image.Image, Image.Image | None, list[str]]:
    content = read_regular(path, MAX_FILE, "image")
    kind = identify(content)
    if kind not in FORMATS:
        what = f"a {kind} file in spite of its name" if kind else "not an image, or damaged"
        raise UserError(
            f"The image {shown(path)} cannot be read, since it is {what}: replace it by a jpg, png or webp, or take it "
            "out of the folder."
        )
    notes = []
    if kind != _NAMED.get(path.suffix.lower(), kind):
        notes.append(f"is a {kind} file in spite of its name, and is read as such.")
    failure = None
    for limit in (MAX_METADATA, 0):
        try:
            image, alpha, more = _load(with_small_metadata(content, kind, limit), kind, path, with_alpha)
        except UserError:
            raise
        except Exception as error:  # on damaged files, Pillow raises almost anything: struct.error, IndexError ...
            failure = failure or error
            continue
        if failure:
            more.append("has metadata that is damaged or too large, which is ignored; check that it is upright.")
        return image, alpha, notes + more
    raise UserError(f"The image {shown(path)} cannot be read: replace it or take it out of the folder.") from failure


_NAMED = {".png": "PNG", ".webp": "WEBP", **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG")}


def _load(content: bytes, kind: str, path: Path, with_alpha: bool) -> tuple[Image.Image, Image.Image | None, list[str]]:
    """Decode the first frame, after a look at the header; raises what Pillow raises."""
    notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about large images and damaged metadata
        try:
            file = Image.open(BytesIO(content), formats=[kind])
        except Image.DecompressionBombError as error:
            raise _too_many_pixels(path) from error
        with file:
            _check_size(file.size, path)
            frames = getattr(file, "n_frames", 1)
            file.load()
            image, alpha, orientation = to_rgb(file), alpha_of(file) if with_alpha else None, _orientation(file)
    if frames > 1:
        notes.append(f"holds {frames} images; the first is used.")
    if orientation is None:
        notes.append("has EXIF data that is damaged or too large, which is ignored; check that it is upright.")
        return image, alpha, notes
    for part in (image, alpha) if alpha is not None else (image,):
        part.info.clear()  # or Pillow writes all EXIF data again as it turns the image, which fails where it is damaged
        part.getexif()[_ORIENTATION] = orientation
        ImageOps.exif_transpose(part, in_place=True)
    return image, alpha, notes


def _check_size(size: tuple[int, int], path: Path) -> None:
    """Raises UserError where decoding or cropping an image of that size, in px, would take unreasonable memory."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_many_pixels(path, f"{width} x {height}, ")
    if max(size) > MAX_SIDE_RATIO * min(size):
        raise UserError(
            f"The image {shown(path)} is {width} x {height} pixels, and one side may be at most {MAX_SIDE_RATIO} times "
            "the other: crop it, or take it out of the folder."
        )


def _too_many_pixels(path: Path, size: str = "") -> UserError:
    return UserError(
        f"The image {shown(path)} has too many pixels ({size}more than {MAX_PIXELS // 10**6} million): scale it down "
        "or take it out of the folder."
    )


def _orientation(file: Image.Image) -> int | None:
    """EXIF's orientation from 1 to 8, 1 where there is none; None where the EXIF data cannot be read."""
    if len(file.info.get("exif") or b"") > MAX_METADATA:  # of a WebP; see there
        return None
    try:
        orientation = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # as in `decode_image`
        return None
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow image to 8-bit RGB: 16-bit gray scaled down, transparency on white.

    Raises:
        UserError: it has a value that is not a number.
    """
    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion of 16-bit gray clips at 255
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The alpha channel of any Pillow image as 8-bit gray, 255 where it is opaque; None if `to_rgb` sees none."""
    if not image.has_transparency_data or image.mode.startswith("I") or image.mode == "F":
        return None
    return image.convert("RGBA").getchannel("A")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Values in 0..65535 as uint8, row by row, since the steps between take 8 bytes per pixel."""
    if not np.isfinite(values).all():
        raise UserError("An image has values that are not numbers (NaN or infinity): check what made it.")
    rows = [np.clip(row.astype(np.float64) / 257, 0, 255).round().astype(np.uint8) for row in values]
    return np.stack(rows)


def from_tensor(values: Tensor, what: str = "image") -> Image.Image:
    """Convert an image [H, W, C] or [H, W] in 0..1 to a Pillow image of 8 bits; values outside are clipped.

    Args:
        what: the noun for the message, such as "mask".

    Raises:
        UserError: it has a value that is not finite, no pixel, or not 1, 3 or 4 channels.
    """
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values.squeeze(-1)
    if values.ndim not in (2, 3) or not values.numel() or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        raise UserError(
            f"The {what} has the shape {list(values.shape)}, which is not height, width and 1, 3 or 4 channels: check "
            "what made it."
        )
    if not torch.isfinite(values).all():
        raise UserError(f"The {what} has values that are not numbers (NaN or infinity): check what made it.")
    return Image.fromarray((values.float().cpu().numpy() * 255).clip(0, 255).round().astype(np.uint8))


def fit(image: Image.Image, resolution: int, square: bool, multiple: int) -> Image.Image:
    """Scale the shorter side to `resolution` px; crop the middle square, or else only to multiples of `multiple` px."""
    if square:
        return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    scale = resolution / min(image.size)
    size = tuple(max(resolution, round(side * scale) // multiple * multiple) for side in image.size)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Convert RGB images of one size to [N, 3, H, W] in -1..1."""
    values = torch.from_numpy(np.stack([np.asarray(image) for image in images]))  # [N, H, W, 3], uint8
    return values.permute(0, 3, 1, 2).float() / 127.5 - 1
