"""Reading a folder of reference images with their captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..hashing import images_fingerprint
from .captions import describe_captions, read_caption
from .formats import SUFFIXES, shown
from .images import decode_image, decode_with_alpha
from .listing import Listing, counted, list_folder
from .prompts import prefixed, template_prompts

NO_ALPHA = "No image has an alpha channel, so alpha_masks changes nothing."


@dataclass(frozen=True)
class Reference:
    """One reference image with the prompts to train it with.

    Attributes:
        image: 8-bit RGB.
        caption: the text of its caption file, or empty.
        repeats: how often an epoch shows it.
        alpha: 8-bit gray of the image's size, the weight of each pixel; None weights all alike.
    """

    image: Image.Image
    prompts: tuple[str, ...]
    source: str
    caption: str = ""
    repeats: int = 1
    alpha: Image.Image | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The same for copies of an image."""
        return images_fingerprint([self.image])


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
    folder: Path | str,
    subject: str,
    shorter_side: int | None = None,
    *,
    token: str | None = None,
    prefix: str = "",
    alpha: bool = False,
) -> ReferenceFolder:
    """Read all images of a folder and of its kohya subfolders (see `listing.list_folder`), with their captions.

    A caption is the first line of its file that is not empty, as in kohya's scripts; further lines are reported.
    Images without a caption get `prompts.template_prompts`.

    Args:
        subject: "TOKEN CLASS", for the templates.
        shorter_side: images with a longer one, in px, are scaled down to it as they are read.
        token: captions that do not contain it are reported; None skips the check.
        prefix: text to put before captions and templates.
        alpha: read the alpha channels of the images, too.

    Raises:
        UserError: the folder does not exist or has no image, or an image or caption cannot be read.
    """
    listing = _list_images(folder, subject)
    notes = listing.notes
    captions = [read_caption(file, notes) for file in listing.images]
    notes += describe_captions(listing.images, captions, token, prefix)
    references = []
    for file, caption in zip(listing.images, captions, strict=True):
        mask = None
        if alpha:
            image, mask, image_notes = decode_with_alpha(file.path)
        else:
            image, image_notes = decode_image(file.path)
        notes += [f"{shown(file.label)} {note}" for note in image_notes]
        prompts = prefixed(prefix, (caption,) if caption else template_prompts(subject))
        mask = None if mask is None else _scale(mask, shorter_side)
        references.append(Reference(_scale(image, shorter_side), prompts, str(file.path), caption, file.repeats, mask))
    if alpha and not any(reference.alpha for reference in references):
        notes.append(NO_ALPHA)
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


def _scale(image: Image.Image, shorter_side: int | None) -> Image.Image:
    least = min(image.size)
    if shorter_side is None or least <= shorter_side:
        return image
    return image.resize(tuple(round(side * shorter_side / least) for side in image.size), Image.Resampling.LANCZOS)
