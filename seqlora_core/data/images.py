"""Reading reference images and their captions: formats, orientation, transparency and size."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from .formats import FORMATS, MAX_METADATA, SUFFIXES, identify, read_regular, shown, with_small_metadata
from .listing import MAX_CAPTION, ImageFile, Listing, counted, join_names, list_folder
from .prompts import describe_missing_token, template_prompts

MAX_FILE = 2**29  # bytes
MAX_PIXELS = 120_000_000  # above the largest common sensors (108 million); such an image takes 0.5 GB in memory
MAX_SIDE_RATIO = 10  # a crop scales the shorter side to the resolution, and the longer one along with it
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Reference:
    """One reference image with the prompts to train it with.

    Attributes:
        image: 8-bit RGB.
        caption: the text of its caption file, or empty.
        repeats: how often an epoch shows it.
    """

    image: Image.Image
    prompts: tuple[str, ...]
    source: str
    caption: str = ""
    repeats: int = 1


@dataclass(frozen=True)
class ReferenceFolder(Sequence[Reference]):
    """The references of a folder, with one sentence per fact about the folder that the user should know."""

    references: tuple[Reference, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index):
        return self.references[index]

    @property
    def summary(self) -> str:
        """The counts, such as "5 images, 3 captions from files, 2 from templates"."""
        captions = sum(bool(reference.caption) for reference in self.references)
        shown_per_epoch = sum(reference.repeats for reference in self.references)
        repeats = f" ({shown_per_epoch} per epoch with repeats)" if shown_per_epoch != len(self) else ""
        return (
            f"{counted(len(self), 'image')}{repeats}, {counted(captions, 'caption')} from files, "
            f"{len(self) - captions} from templates"
        )


def read_folder(
    folder: Path | str, subject: str, shorter_side: int | None = None, *, token: str | None = None
) -> ReferenceFolder:
    """Read all images of a folder and of its kohya subfolders (see `listing.list_folder`), with their captions.

    A caption is the first line of its file that is not empty, as in kohya's scripts; further lines are reported.
    Images without a caption get `prompts.template_prompts`.

    Args:
        subject: "TOKEN CLASS", for the templates.
        shorter_side: images with a longer one, in px, are scaled down to it as they are read.
        token: captions that do not contain it are reported; None skips the check.

    Raises:
        UserError: the folder does not exist or has no image, or an image or caption cannot be read.
    """
    listing = _list_images(folder, subject)
    notes = listing.notes
    captions = [_read_caption(file, notes) for file in listing.images]
    notes += _describe_captions(listing.images, captions, token)
    references = []
    for file, caption in zip(listing.images, captions, strict=True):
        image, image_notes = _decode(file.path)
        notes += [f"{shown(file.label)} {note}" for note in image_notes]
        prompts = (caption,) if caption else template_prompts(subject)
        references.append(Reference(_scale(image, shorter_side), prompts, str(file.path), caption, file.repeats))
    if len(references) == 1:
        notes.append("There is only one image, which the concept will learn as it is: 4 to 20 images work better.")
    return ReferenceFolder(tuple(references), tuple(notes))


def image_files(folder: Path | str) -> list[Path]:
    """The image files that `read_folder` reads.

    Raises:
        UserError: the folder does not exist or has no image.
    """
    return [file.path for file in _list_images(folder).images]


def _list_images(folder: Path | str, subject: str = "") -> Listing:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {shown(folder)}: give a folder of images ({', '.join(SUFFIXES)}).")
    listing = list_folder(folder, subject)
    if not listing.images:
        found = " ".join(["", *listing.notes])
        raise UserError(f"There are no images in {shown(folder)}: put some {', '.join(SUFFIXES)} files there.{found}")
    return listing


def _read_caption(file: ImageFile, notes: list[str]) -> str:
    if file.caption_file is None:
        return ""
    content = read_regular(file.caption_file, MAX_CAPTION, "caption")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The caption {shown(file.caption_file)} is not readable text: save it as UTF-8.") from error
    if "\0" in text:
        raise UserError(f"The caption {shown(file.caption_file)} is not readable text: save it as UTF-8.")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        notes.append(f"Of {shown(file.caption_file.name)}, only the first of {len(lines)} lines is used.")
    return lines[0] if lines else ""


def _describe_captions(files: Sequence[ImageFile], captions: Sequence[str], token: str | None) -> list[str]:
    notes = []
    missing = [file.label for file, caption in zip(files, captions, strict=True) if not caption]
    if 0 < len(missing) < len(files):
        notes.append(f"{len(missing)} of {len(files)} images have no caption: {join_names(missing)}.")
    elif empty := [file.label for file in files if not any(captions) and file.caption_file]:
        notes.append(f"The caption files of these images are empty: {join_names(empty)}.")
    if token:
        notes += describe_missing_token([caption for caption in captions if caption], token)
    return notes


def _scale(image: Image.Image, shorter_side: int | None) -> Image.Image:
    least = min(image.size)
    if shorter_side is None or least <= shorter_side:
        return image
    return image.resize(tuple(round(side * shorter_side / least) for side in image.size), Image.Resampling.LANCZOS)


def read_image(path: Path) -> Image.Image:
    """Read one image as 8-bit RGB: turned as its EXIF says, transparency on white, 16-bit scaled down.

    Raises:
        UserError: it is no JPEG, PNG or WebP file, is too large to decode, or is damaged.
    """
    return _decode(path)[0]


def _decode(path: Path) -> tuple[Image.Image, list[str]]:
    """The image, and what to report of it: clauses whose subject is the file."""
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
            image, more = _load(with_small_metadata(content, kind, limit), kind, path)
        except UserError:
            raise
        except Exception as error:  # on damaged files, Pillow raises almost anything: struct.error, IndexError ...
            failure = failure or error
            continue
        if failure:
            more.append("has metadata that is damaged or too large, which is ignored; check that it is upright.")
        return image, notes + more
    raise UserError(f"The image {shown(path)} cannot be read: replace it or take it out of the folder.") from failure


_NAMED = {".png": "PNG", ".webp": "WEBP", **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG")}


def _load(content: bytes, kind: str, path: Path) -> tuple[Image.Image, list[str]]:
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
            image, orientation = to_rgb(file), _orientation(file)
    if frames > 1:
        notes.append(f"holds {frames} images; the first is used.")
    if orientation is None:
        notes.append("has EXIF data that is damaged or too large, which is ignored; check that it is upright.")
        return image, notes
    image.info.clear()  # or Pillow writes all EXIF data again as it turns the image, which fails where it is damaged
    image.getexif()[_ORIENTATION] = orientation
    ImageOps.exif_transpose(image, in_place=True)
    return image, notes


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
    except Exception:  # as in `_decode`
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
