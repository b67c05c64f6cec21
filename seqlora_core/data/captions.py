"""Captions: reading their files, assigning them to images, and what to report about them."""

import unicodedata
from collections.abc import Sequence

from ..errors import UserError
from .formats import read_regular, shown
from .listing import ImageFile, counted, join_names
from .prompts import prefixed, shorten, template_prompts

MAX_CAPTION = 65536  # bytes; a prompt has room for 77 tokens


def read_caption(file: ImageFile, notes: list[str]) -> str:
    """Read the caption of an image: the first line of its caption file that is not empty; "" if there is none.

    Args:
        notes: receives a sentence about what is not used.

    Raises:
        UserError: the file cannot be read, is too large, or is not text.
    """
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


def describe_captions(
    files: Sequence[ImageFile], captions: Sequence[str], token: str | None, prefix: str = ""
) -> list[str]:
    """Report missing and empty captions, and captions without the token, as sentences.

    Args:
        token: None skips its check.
        prefix: text that is put before the captions, which may hold the token.
    """
    notes = []
    missing = [file.label for file, caption in zip(files, captions, strict=True) if not caption]
    if 0 < len(missing) < len(files):
        notes.append(f"{len(missing)} of {len(files)} images have no caption: {join_names(missing)}.")
    elif empty := [file.label for file in files if not any(captions) and file.caption_file]:
        notes.append(f"The caption files of these images are empty: {join_names(empty)}.")
    if token:
        notes += describe_missing_token(prefixed(prefix, filter(None, captions)), token)
    return notes


def caption_prompts(captions: str, subject: str, images: int, prefix: str = "") -> list[tuple[str, ...]]:
    """Assign the lines of `captions` to images: one line per image, or one for all; templates if there is no line.

    Args:
        images: the number of images.
        prefix: text to put before captions and templates.

    Raises:
        UserError: the number of lines fits neither.
    """
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if not lines:
        return [prefixed(prefix, template_prompts(subject))] * images
    if len(lines) not in (1, images):
        raise UserError(
            f"There are {len(lines)} captions for {counted(images, 'image')}: give one line per image, or one for all."
        )
    return [prefixed(prefix, (line,)) for line in (lines if len(lines) == images else lines * images)]


def describe_missing_token(captions: Sequence[str], token: str) -> list[str]:
    """Report how many captions lack the token, as sentences (none if all have it); case does not matter to CLIP."""
    lacking = [caption for caption in captions if _plain(token) not in _plain(caption)]
    if not lacking:
        return []
    return [
        f"{len(lacking)} of {len(captions)} captions do not contain the token '{token}', so nothing of those images "
        f"binds to it; for example: {shorten(lacking[0])}."
    ]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
