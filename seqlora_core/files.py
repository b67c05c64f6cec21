"""Atomic writes, and locks between processes."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

_REPLACE_ATTEMPTS = 20


class Unwritable(UserError):
    """A file or its folder cannot be written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path` atomically.

    The content goes to a temporary file in the same folder, is flushed to the disk, and is renamed over `path`.
    Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp would make a private file; an ordinary one has the permissions of the user's umask.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Check that a file can be written later, in a folder that exists or can be created; leave nothing behind.

    Raises:
        Unwritable: it cannot be written.
    """
    folder = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if folder is None:  # Windows, for a drive that is not connected
        raise Unwritable(f"Cannot write {path}: there is no drive {path.absolute().anchor}; give another folder.")
    probe = folder / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Unwritable(f"Cannot write {path}: {error.strerror or error}.") from error


def _replace(source: Path, target: Path) -> None:
    for attempt in range(_REPLACE_ATTEMPTS):
        try:
            os.replace(source, target)
            return
        except PermissionError:  # Windows, while another process reads the target
            if attempt == _REPLACE_ATTEMPTS - 1:
                raise
            time.sleep(0.05)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable.  Windows cannot open folders and needs no such step."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None, patience: float = 60.0) -> Iterator[None]:
    """Hold the lock file at `path` while the block lasts; other processes and threads wait.

    Args:
        waiting: called about twice a second while another holder has the lock; may raise to give up.
        patience: how long to wait, in seconds, if there is no `waiting`.

    Raises:
        UserError: the lock was not free in time.
        Unwritable: the folder cannot be written to.
    """
    lock = FileLock(path)
    try:
        if waiting is None:
            lock.acquire(timeout=patience)
        else:
            _acquire_reporting(lock, waiting)
    except Timeout as error:
        raise UserError(
            f"Another process has been using {path.parent} for too long: try again when it has finished."
        ) from error
    except OSError as error:
        raise Unwritable(f"Cannot write to {path.parent}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


def _acquire_reporting(lock: FileLock, waiting: Callable[[], None]) -> None:
    while True:
        try:
            lock.acquire(timeout=0.5)
            return
        except Timeout:
            waiting()
