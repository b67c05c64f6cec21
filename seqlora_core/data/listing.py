"""What lies in an image folder: images, their caption files, kohya's subfolders, and all that is not used."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .formats import SUFFIXES, identify, is_regular, shown

CAPTION_SUFFIXES = (".txt", ".caption")  # in order of precedence
MAX_REPEATS = 1000  # a folder "2024_holiday" is an album, not 2024 repeats
_KOHYA_FOLDER = re.compile(r"(\d+)_(.*)", re.DOTALL)
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r"}
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class ImageFile:
    """One image file of a folder.

    Attributes:
        label: its path inside the folder, for messages.
        caption_file: None where it has none.
        repeats: how often an epoch shows it.
    """

    path: Path
    label: str
    caption_file: Path | None = None
    repeats: int = 1


@dataclass
class Listing:
    """The images of a folder in order, and sentences about what is not used or may surprise."""

    images: list[ImageFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_folder(folder: Path, subject: str = "") -> Listing:
    """All images of a folder by name, then those of kohya's subfolders (`20_sksdog dog`: repeats, token and class).

    The caption of `photo.png` is `photo.txt`, `photo.png.txt`, `photo.caption` or `photo.png.caption`: the first of
    these that exists, in any case. Files that the operating system makes are skipped; everything else is reported.

    Args:
        subject: "TOKEN CLASS"; a subfolder whose name says something else is reported. Empty skips the check.

    Raises:
        UserError: the folder cannot be listed.
    """
    listing, unread = Listing(), []
    for child in _add_files(folder, "", 1, listing):
        name = _KOHYA_FOLDER.fullmatch(child.name)
        if name is None or not 1 <= len(name[1].lstrip("0")) <= 4 or int(name[1]) > MAX_REPEATS:
            unread.append(f"{child.name}/")
            continue
        before, repeats = len(listing.images), int(name[1])
        deeper = _add_files(child, f"{child.name}/", repeats, listing)
        unread += [f"{child.name}/{folder.name}/" for folder in deeper]
        listing.notes.append(_describe_subfolder(child.name, name[2], repeats, len(listing.images) - before, subject))
    if unread:
        listing.notes.append(
            f"These folders are not read: {join_names(unread)} (only folders named like '20_sksdog dog' are, with 1 to "
            f"{MAX_REPEATS} repeats)."
        )
    return listing


def counted(number: int, noun: str) -> str:
    """A number and its noun, which forms its plural with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def join_names(names: Sequence[str]) -> str:
    """File names for a sentence; of many, the first few and how many more."""
    text = ", ".join(shown(name) for name in names[:_NAMES_SHOWN])
    return f"{text} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else text


def _describe_subfolder(name: str, said: str, repeats: int, images: int, subject: str) -> str:
    sentence = f"The folder {shown(name)} adds {counted(images, 'image')}, each {counted(repeats, 'time')} per epoch."
    # A learned word is the whole subject, and the folder's name may have the class word after it.
    if subject and said and not f"{_same(said)} ".startswith(f"{_same(subject)} "):
        sentence += f" Its name says '{shown(said)}'; the subject is '{subject}', as given."
    return sentence


def _add_files(folder: Path, prefix: str, repeats: int, listing: Listing) -> list[Path]:
    """Add a folder's images, with notes on its other files; returns the folders inside."""
    try:
        entries = [(path, path.is_dir()) for path in sorted(folder.iterdir()) if not _is_of_system(path.name)]
    except OSError as error:
        raise UserError(
            f"The folder {shown(folder)} cannot be listed ({error.strerror}): check its permissions."
        ) from error
    images: list[Path] = []
    texts: list[Path] = []
    others: list[Path] = []
    for path in (path for path, is_folder in entries if not is_folder):
        suffix = "" if path.name.startswith(".") else path.suffix.lower()
        kind = images if suffix in SUFFIXES else texts if suffix in CAPTION_SUFFIXES else others
        kind.append(path)
    by_name: dict[str, list[Path]] = {}
    for path in texts:
        by_name.setdefault(_same(path.name), []).append(path)
    used, matched = set(), {}
    for path in images:
        captions = _captions_of(path, by_name)
        listing.images.append(ImageFile(path, prefix + path.name, captions[0] if captions else None, repeats))
        used.update(captions[:1])
        matched |= {extra: (path, captions[0]) for extra in captions[1:]}
    for extra, (path, caption) in matched.items():
        if extra not in used:
            names = [shown(prefix + each.name) for each in (extra, caption, path)]
            listing.notes.append(f"{names[0]} is not used: {names[1]} is the caption of {names[2]}.")
    if orphans := [prefix + path.name for path in texts if path not in used and path not in matched]:
        listing.notes.append(f"There is no image of the same name for {join_names(orphans)}: not used.")
    if others:
        # Files whose names are not shown are not opened: a folder may hold thousands.
        described = [_describe(path, prefix) for path in others[:_NAMES_SHOWN]]
        described += [path.name for path in others[_NAMES_SHOWN:]]
        listing.notes.append(f"Not used, since only jpg, png and webp images are read: {join_names(described)}.")
    return [path for path, is_folder in entries if is_folder]


def _is_of_system(name: str) -> bool:
    """Whether the operating system made the file: macOS's `._photo.png`, Windows' `Thumbs.db`."""
    return name.startswith("._") or name.lower() in _SYSTEM_FILES


def _captions_of(image: Path, by_name: dict[str, list[Path]]) -> list[Path]:
    """The caption files of an image, the one that counts first."""
    found: list[Path] = []
    for suffix in CAPTION_SUFFIXES:
        for name in (image.stem + suffix, image.name + suffix):
            same = by_name.get(_same(name), [])
            found += [path for path in same if path.name == name] + same
    return list(dict.fromkeys(found))


def _describe(path: Path, prefix: str) -> str:
    """Name and format of a file that is not used."""
    label = prefix + path.name
    if not is_regular(path):
        return f"{label} (no regular file)"
    if path.name.startswith("."):
        return f"{label} (hidden)"
    try:
        with open(path, "rb") as file:
            kind = identify(file.read(256))
    except OSError:
        kind = "unreadable"
    kind = kind or path.suffix.removeprefix(".").upper()
    return f"{label} ({kind})" if kind else label


def _same(name: str) -> str:
    """Equal for names that a file system may take for the same: case, and macOS's composed characters."""
    return unicodedata.normalize("NFC", name).casefold().strip()
