"""Safetensors files from outside, read with every check that a damaged or hostile file calls for.

The header is read first, and a tensor only when it is asked for, so that neither a 10 GB checkpoint nor a header that
declares one costs memory.  The layout is that of https://github.com/huggingface/safetensors#format.
"""

import copy
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import UserError

MAX_HEADER = 16 * 2**20  # bytes; a full SDXL checkpoint has 0.3 MB, a LoRA with every caption of its training a few
_DTYPE_NAMES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
# Older releases of torch lack some of them.
_DTYPES = {name: getattr(torch, dtype) for name, dtype in _DTYPE_NAMES.items() if hasattr(torch, dtype)}
_BEGINNINGS = (
    (b"<", "a web page or XML (perhaps a sign-in page), not the file itself", "download the file again"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull, or download the file"),
    (b"PK\x03\x04", "a PyTorch pickle or a ZIP archive, not a safetensors file", "unpack or convert it"),
    (b"\x80\x02", "a PyTorch pickle, not a safetensors file", "convert it to .safetensors"),
    (b"GGUF", "a GGUF file, not a safetensors file", "choose the .safetensors form of it"),
    (b"\x89PNG", "an image, not a safetensors file", "choose the model file instead of its preview"),
    (b"\xff\xd8\xff", "an image, not a safetensors file", "choose the model file instead of its preview"),
    (b"RIFF", "an image, not a safetensors file", "choose the model file instead of its preview"),
    (b"{", "a JSON text (perhaps an error message), not a safetensors file", "download the file again"),
    (b"Rar!", "an archive, not a safetensors file", "unpack it"),
    (b"7z\xbc\xaf", "an archive, not a safetensors file", "unpack it"),
)
_FOLDER_FILES_SHOWN = 3
_MAX_DIMENSIONS = 8
_MAX_KEY = 1000  # characters
_KEY_SHOWN = 100  # of them in a message


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: its dtype, shape, and first byte after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file by key; each is read, and checked to be finite, when it is asked for.

    Attributes:
        source: what messages call the file.
        shapes: the shape of every tensor.
        metadata: what the file says about itself; the texts can be anything.
    """

    def __init__(self, source: str, open_file: Callable[[], BinaryIO]) -> None:
        self.source, self._open = source, open_file
        with self._reading() as file:
            total = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._entries, self.metadata, self._data = _read_header(file, total, source)
        self.shapes = {key: entry.shape for key, entry in self._entries.items()}

    @classmethod
    def open(cls, path: Path) -> "TensorFile":
        """Read a file's header.

        Raises:
            UserError: it cannot be read, is something else (says what), or is damaged.
        """
        check_is_file(path)
        return cls(path.name, lambda: open(path, "rb"))

    @classmethod
    def of(cls, content: bytes, source: str) -> "TensorFile":
        """Read the header of a file's content.

        Raises:
            UserError: it is something else (says what), or is damaged.
        """
        return cls(source, lambda: io.BytesIO(content))

    def without(self, is_left_out: Callable[[str], bool]) -> "TensorFile":
        """Return the same file without the tensors of some keys."""
        rest = copy.copy(self)
        rest._entries = {key: entry for key, entry in self._entries.items() if not is_left_out(key)}
        rest.shapes = {key: entry.shape for key, entry in rest._entries.items()}
        return rest

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, key: str) -> Tensor:
        """Read one tensor, in the file's dtype, on the CPU.

        Raises:
            UserError: a value is not finite, or the file has changed since it was opened.
        """
        entry = self._entries[key]
        buffer = bytearray(entry.size)
        with self._reading() as file:
            file.seek(self._data + entry.start)
            if file.readinto(buffer) != entry.size:
                raise UserError(f"{self.source} was changed while it was being read: try again.")
        if not entry.size:
            return torch.empty(entry.shape, dtype=entry.dtype)
        tensor = torch.frombuffer(buffer, dtype=entry.dtype).reshape(entry.shape)
        if entry.dtype.is_floating_point and not _is_finite(tensor):
            raise UserError(
                f"{self.source} holds numbers that are not finite in {key[:_KEY_SHOWN]}: download it again."
            )
        return tensor

    @contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        try:
            with self._open() as file:
                yield file
        except OSError as error:
            raise UserError(f"{self.source} cannot be read: {error.strerror or error}.") from error


def check_is_file(path: Path) -> None:
    """Raise UserError where `path` is missing, a folder (says which files it holds), or a pipe or device."""
    try:
        if path.is_dir():
            files = list(path.iterdir())
            files += [inner for folder in files if folder.is_dir() for inner in folder.iterdir()]
            found = sorted(str(f.relative_to(path)) for f in files if f.suffix.lower() == ".safetensors")
            if not found:
                raise UserError(f"{path.name} is a folder without .safetensors files: give the file itself.")
            shown = ", ".join(found[:_FOLDER_FILES_SHOWN]) + (", ..." if len(found) > _FOLDER_FILES_SHOWN else "")
            raise UserError(f"{path.name} is a folder: give one of the files in it ({shown}).")
        if not path.exists():
            raise UserError(f"{path.name} cannot be read: there is no file {path}.")
        if not path.is_file():
            raise UserError(f"{path.name} is not a regular file: give a .safetensors file.")
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise UserError(f"{path.name!r} cannot be read: {error}.") from error


def _is_finite(tensor: Tensor) -> bool:
    whole = tensor if tensor.element_size() > 1 else tensor.float()  # eight-bit floats have few operations
    return math.isfinite(torch.linalg.vector_norm(whole, math.inf))  # one pass, and NaN counts as the largest


def _read_header(file: BinaryIO, total: int, source: str) -> tuple[dict[str, _Entry], dict[str, str], int]:
    """The entries, the metadata, and where the tensors begin, of a file of `total` bytes."""
    beginning = file.read(64)
    if not beginning.strip(b"\0 \r\n\t"):
        kind = "holds nothing but zeros or blanks" if total else "is empty"
        raise UserError(f"{source} cannot be read, because it {kind}: download it again.")
    for mark, kind, advice in _BEGINNINGS:
        if beginning.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(mark) and beginning[8:9] != b"{":
            raise UserError(f"{source} cannot be read, because it is {kind}: {advice}.")
    length = int.from_bytes(beginning[:8], "little")
    if beginning[8:9] != b"{" or len(beginning) < 10:
        raise UserError(
            f"{source} cannot be read, because it is not a safetensors file: download it again, or choose another."
        )
    if length > MAX_HEADER:
        raise _damage(source, f"its header has {length} bytes, more than the {MAX_HEADER} that are read")
    if length + 8 > total:
        raise _damage(source, "it ends within its header")
    file.seek(8)
    try:
        document = json.loads(file.read(length).decode("utf-8"), parse_constant=_refuse_constant)
        metadata = document.pop("__metadata__", None) or {}
        if any(len(key) > _MAX_KEY for key in document):
            raise ValueError("key")
        entries = {key: _entry(key, value, source) for key, value in document.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _damage(source, "its header is not that of a safetensors file") from error
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _damage(source, "its metadata has values that are not texts")
    _check_layout(entries, total - 8 - length, source)
    return entries, metadata, 8 + length


def _entry(key: str, value: Mapping, source: str) -> _Entry:
    name, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
    if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**48 for n in (*shape, start, stop)):
        raise _damage(source, f"{key[:_KEY_SHOWN]} has an impossible shape or place")
    if name not in _DTYPES:
        raise UserError(
            f"{source} holds numbers of the type {str(name)[:20]!r} in {key[:_KEY_SHOWN]}: choose a float16 or "
            "float32 file."
        )
    if math.prod(shape) * _DTYPES[name].itemsize != stop - start:
        raise _damage(source, f"the shape of {key[:_KEY_SHOWN]} does not fit its bytes")
    return _Entry(_DTYPES[name], tuple(shape), start, stop - start)


def _check_layout(entries: Mapping[str, _Entry], available: int, source: str) -> None:
    """The tensors must fill the rest of the file without gaps, as every writer leaves them."""
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.size)):
        if entry.start != end:
            raise _damage(source, "its tensors overlap or leave gaps")
        end += entry.size
    if end > available:
        raise _damage(source, f"it is truncated, {end - available} bytes are missing")
    if end < available:
        raise _damage(source, f"it has {available - end} bytes too many")


def _refuse_constant(text: str) -> None:
    raise ValueError(text)


def _damage(source: str, what: str) -> UserError:
    return UserError(f"{source} cannot be read, because it is damaged ({what}): download it again.")
