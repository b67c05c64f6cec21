"""Atomic writes, locks between processes, and reading of files that may be anything."""

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

_REPLACE_ATTEMPTS = 20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_ABANDONED_SECONDS = 600.0  # since the last change of a temporary file; its writer fills it in one go
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class Unwritable(UserError):
    """A file or its folder cannot be written."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path` atomically.

    The content goes to a temporary file in the same folder, is flushed to the disk, and is renamed over `path`.
    Missing folders are created.

    Raises:
        OSError: `path` is as it was before.
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
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # the new content is in place, and a failure here does not take it back
        _sync_folder(path.parent)


def describe(error: OSError) -> str:
    """What the system says about a failed change of a file, and what to do: "No space left on device: free some"."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        return f"{reason}: free some space and try again"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{reason}: check that you may write there, and that no other program has the file open"
    if isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)):
        return f"{reason}: move what is in its place somewhere else"
    return f"{reason}: check the disk and try again"


def is_plain(path: Path) -> bool:
    """Whether it is a regular file itself: no link, and no FIFO or device, which may wait forever when opened."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _is_special(path: Path) -> bool:
    """Whether something is there that is no regular file."""
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_plain_folder(path: Path) -> bool:
    """Whether it is a folder itself, not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_plain(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes without following links.

    Raises:
        OSError: it cannot be read; FileNotFoundError where there is none.
        UserError: it is larger, or no regular file.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a link, a folder, a pipe or a device: put the file itself there.")
    if status.st_size <= limit:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
        if len(content) <= limit:
            return content
    raise UserError(f"{path} has more than {limit} bytes, which no such file has: restore it from a backup.")


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files of `write_atomically` whose writer died; young ones stay, whose writer may be at work."""
    for path in entries(folder):
        with contextlib.suppress(OSError):
            is_temporary = _TEMPORARY.fullmatch(path.name) and is_plain(path)
            if is_temporary and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where there is none, or where it is a link."""
    try:
        return list(folder.iterdir()) if is_plain_folder(folder) else []
    except OSError:
        return []


def is_same_file(first: Path, second: Path) -> bool:
    """Whether both names lead to one file or folder, through links or in another case too; False if one is missing."""
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


def check_no_input(out: Path, inputs: Iterable[Path | str | None]) -> None:
    """Refuse an output that is one of the command's own inputs, or a file in a folder that is one.

    Raises:
        UserError: writing `out` would destroy it.
    """
    folders = Path(os.path.realpath(out)).parents if out.is_file() else ()
    for path in filter(None, inputs):
        if any(is_same_file(place, Path(path)) for place in (out, *folders)):
            raise UserError(f"The output {out} is also an input and would be overwritten: choose another file.")


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
        UserError: the lock was not free in time, or a link or device is in its place.
        Unwritable: the folder cannot be written to.
    """
    if _is_special(path):
        raise UserError(f"The lock file {path} is no regular file: delete it.")
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
    except NotImplementedError as error:
        raise Unwritable(f"The disk of {path.parent} has no file locks: put the folder on another disk.") from error
    except OSError as error:
        raise Unwritable(f"Cannot write to {path.parent} ({describe(error)}).") from error
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
