"""Files that are never half written, and locks between processes."""

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
    """The folder cannot be written to."""


def write_atomically(path: Path, content: bytes) -> None:
    """Give `path` this content at one instant: temporary file beside it, flushed to the disk, renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # An ordinary new file, so that others may read it as far as the user's umask says; mkstemp's would be private.
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
    """Whether a file can be written later, in a folder that is there or can be made; leaves nothing behind.

    Raises:
        Unwritable: it cannot.
    """
    folder = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if folder is None:  # Windows, for a drive that is not connected
        raise Unwritable(f"Cannot write {path}: the drive {path.absolute().anchor} is not there; give another folder.")
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
    """Make a rename durable; Windows cannot open folders, and needs no such step."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None, patience: float = 60.0) -> Iterator[None]:
    """Hold the lock file at `path`; other processes and threads wait.

    Args:
        waiting: called about twice a second while somebody else holds it; may raise to give up.
        patience: seconds to wait, without `waiting`.

    Raises:
        UserError: the lock was not to be had in time.
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
            f"Another process has been using {path.parent} for too long: try again when it is done."
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
