"""The files of a bank's folder: the manifest, the concepts' files, and what a crash left behind.

Links, FIFOs and devices in a bank are neither followed nor opened, because a bank may come from anywhere.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from .. import files as storage
from ..errors import UserError
from ..tensor_file import MAX_HEADER, TensorFile
from .manifest import MAX_BYTES, Concept, Manifest
from .manifest_check import MAX_RANK

MANIFEST = "bank.json"
_THUMBNAIL_FILE = re.compile(r"[a-z0-9-]+\.webp")
_MAX_THUMBNAIL = 2**20  # bytes
_BEGINNING = 4096  # bytes of a manifest that name its format


def read_manifest(folder: Path) -> Manifest:
    """Read a bank's manifest.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    path = folder / MANIFEST
    try:
        content = storage.read_plain(path, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"There is no bank in {folder}: train a concept into it first, or check the path.") from error
    except OSError as error:
        raise UserError(f"The bank {folder} cannot be read ({storage.describe(error)}).") from error
    return Manifest.from_json(content, str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace a bank's manifest.

    Raises:
        OSError: it is as it was before.
        UserError: it would be too large to be read again.
    """
    content = manifest.to_json().encode()
    if len(content) > MAX_BYTES:
        raise UserError(f"The bank {folder} holds as many concepts as a bank can: start another bank.")
    try:
        storage.write_atomically(folder / MANIFEST, content)
    except OSError:  # a network disk may report a rename that it has carried out as failed
        with contextlib.suppress(UserError):
            if read_manifest(folder) == manifest:
                return
        raise


def read_concept_file(folder: Path, concept: Concept, manifest: Manifest) -> bytes:
    """Read the bytes of a concept's file.

    Raises:
        UserError: it is missing, a link, larger than a concept of its rank can be, or cannot be read.
    """
    path = folder / PurePosixPath(concept.file)
    widths = sum(shape.width + shape.out for shape in manifest.layers.values())
    try:
        _check_folder(path.parent)
        # Each of alpha's numbers has 4 bytes, too.
        return storage.read_plain(
            path, MAX_HEADER + 4 * min(concept.rank, MAX_RANK) * widths + 4 * len(manifest.layers)
        )
    except OSError as error:
        raise UserError(
            f"The file of concept {concept.name!r} cannot be read: {path} ({error.strerror}); put it back, or remove "
            "the concept."
        ) from error
    except UserError as error:
        raise UserError(f"The file of concept {concept.name!r} cannot be used: {error}") from error


def read_thumbnail(folder: Path, concept: Concept) -> bytes:
    """Read a concept's thumbnail; empty where it has none that can be read, since it is only decoration."""
    if concept.thumbnail:
        with contextlib.suppress(OSError, UserError):
            path = folder / PurePosixPath(concept.thumbnail)
            _check_folder(path.parent)
            return storage.read_plain(path, _MAX_THUMBNAIL)
    return b""


def write_file(folder: Path, relative: str, content: bytes) -> None:
    """Write a file of a concept.

    Raises:
        OSError: it cannot be written.
        UserError: its folder is a link.
    """
    path = folder / PurePosixPath(relative)
    _check_folder(path.parent)
    storage.write_atomically(path, content)


def delete_files(folder: Path, concept: Concept) -> None:
    """Delete the files of a concept that is not in the manifest; one that is open elsewhere stays, on Windows."""
    for relative in filter(None, (concept.file, concept.thumbnail)):
        path = folder / PurePosixPath(relative)
        with contextlib.suppress(OSError, UserError):
            _check_folder(path.parent)
            path.unlink()


def clean(folder: Path, manifest: Manifest) -> None:
    """Delete what crashed changes left: abandoned temporary files, and files of this bank that no concept has.

    The caller holds the bank's lock, so that nobody is about to publish such a file.  A concept's file is deleted only
    if its header names this bank: what else lies there was put there by the user.
    """
    for place in (folder, folder / "concepts", folder / "thumbnails", folder / "checkpoints"):
        storage.remove_abandoned(place)
    used = {name.casefold() for concept in manifest.concepts for name in (concept.file, concept.thumbnail)}
    for place, is_ours in (("concepts", _belongs_to(manifest)), ("thumbnails", _is_thumbnail)):
        for path in storage.entries(folder / place):
            if f"{place}/{path.name}".casefold() not in used and storage.is_plain(path) and is_ours(path):
                with contextlib.suppress(OSError):
                    path.unlink()


def check_outside_banks(path: Path, banks: Iterable[Path | str | None] = ()) -> None:
    """Refuse an output inside of a bank, whose files are its own.

    Args:
        path: the output; links on the way to it are followed, as writing would.
        banks: folders that are banks even if their manifest cannot be read.

    Raises:
        UserError: names the bank.
    """
    given = [Path(bank) for bank in banks if bank]
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        if _is_bank(folder) or any(storage.is_same_file(folder, bank) for bank in given):
            raise UserError(f"The output {path} lies in the bank {folder}: choose a place outside of it.")


def _is_bank(folder: Path) -> bool:
    try:
        with open(folder / MANIFEST, "rb") if storage.is_plain(folder / MANIFEST) else contextlib.nullcontext() as file:
            return file is not None and b'"seqlora-bank"' in file.read(_BEGINNING)
    except OSError:
        return False


def _check_folder(folder: Path) -> None:
    if folder.is_symlink():
        raise UserError(f"{folder} is a link: put the folder itself there.")


def _belongs_to(manifest: Manifest) -> Callable[[Path], bool]:
    def check(path: Path) -> bool:
        if path.suffix != ".safetensors":
            return False
        try:
            return json.loads(TensorFile.open(path).metadata["seqlora.bank"]) == manifest.id
        except (UserError, KeyError, ValueError, RecursionError):
            return False

    return check


def _is_thumbnail(path: Path) -> bool:
    return _THUMBNAIL_FILE.fullmatch(path.name) is not None
