"""The files of a bank's folder: the manifest, the concepts' files, and what a crash left behind.

Links, FIFOs and devices in a bank are neither followed nor opened, because a bank may come from anywhere.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .. import files as storage
from ..errors import UserError
from ..tensor_file import MAX_HEADER
from .manifest import MAX_BYTES, Concept, Manifest
from .manifest_check import MAX_RANK

MANIFEST = "bank.json"
_PENDING = ".pending"
_PLACES = ("concepts", "thumbnails", "embeddings")
_MAX_THUMBNAIL = 2**20  # bytes
MAX_EMBEDDING = 4 * 2**20  # bytes; 75 vectors of 8192 numbers take 2.5 MB
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
    widths = sum(shape.width + shape.out for shape in manifest.layers.values())
    # Each of alpha's numbers has 4 bytes, too.
    most = MAX_HEADER + 4 * min(concept.rank, MAX_RANK) * widths + 4 * len(manifest.layers)
    return _read(folder, concept.file, most, f"The file of concept {concept.name!r}")


def read_embedding_file(folder: Path, concept: Concept) -> bytes:
    """Read the bytes of a learned word's file.

    Raises:
        UserError: it is missing, a link, larger than a word can be, or cannot be read.
    """
    return _read(folder, concept.embedding, MAX_EMBEDDING, f"The word of concept {concept.name!r}")


def _read(folder: Path, relative: str, most: int, what: str) -> bytes:
    """Read a file of a concept, of at most `most` bytes; an error begins with `what`."""
    path = folder / PurePosixPath(relative)
    try:
        _check_folder(path.parent)
        return storage.read_plain(path, most)
    except OSError as error:
        raise UserError(
            f"{what} cannot be read: {path} ({error.strerror}); put it back, or remove the concept."
        ) from error
    except UserError as error:
        raise UserError(f"{what} cannot be used: {error}") from error


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
    for relative in concept.files:
        path = folder / PurePosixPath(relative)
        with contextlib.suppress(OSError, UserError):
            _check_folder(path.parent)
            path.unlink()


def mark(folder: Path, concepts: Iterable[Concept]) -> None:
    """Note the files whose fate a change is about to decide, so that after a crash `clean` knows them.

    Raises:
        OSError: a note cannot be written.
        UserError: the folder of a file is a link.
    """
    for path in _files(folder, concepts):
        _check_folder(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        _note(path).touch()


def unmark(folder: Path, concepts: Iterable[Concept]) -> None:
    """Delete the notes of `mark`."""
    for path in _files(folder, concepts):
        with contextlib.suppress(OSError):
            _note(path).unlink()


def clean(folder: Path, manifest: Manifest) -> None:
    """Delete what changes left, finished and crashed ones: temporary files, and marked files that no concept has.

    The caller holds the bank's lock, so that no other change is under way.  Files without a mark stay: an older
    manifest may have been restored from a backup, and the concepts that it does not name are not lost then.
    """
    for place in (folder, *(folder / name for name in (*_PLACES, "checkpoints"))):
        storage.remove_abandoned(place)
    used = {name.casefold() for concept in manifest.concepts for name in concept.files}
    for place in _PLACES:
        for note in storage.entries(folder / place):
            if note.name.startswith(".") and note.name.endswith(_PENDING) and storage.is_plain(note):
                path = note.with_name(note.name[1 : -len(_PENDING)])
                with contextlib.suppress(OSError):  # a file that is open elsewhere stays, on Windows, and its note too
                    if f"{place}/{path.name}".casefold() not in used:
                        path.unlink(missing_ok=True)
                    note.unlink()


def _files(folder: Path, concepts: Iterable[Concept]) -> list[Path]:
    return [folder / PurePosixPath(name) for concept in concepts for name in concept.files]


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}{_PENDING}")


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
