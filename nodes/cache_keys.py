"""Keys that tell whether something has changed: files, and the values that a graph put on a node's inputs."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor


def files_cache_key(files: Iterable[Path]) -> str:
    """A text that differs after every change of the files."""
    return "/".join(f"{file.name}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in sorted(files))


def values_fingerprint(values: Iterable[object]) -> str:
    """A hash of texts, numbers and tensors, nested to any depth, also inside the host's patches.

    Functions, which the patches of merged models hold, are left out: they are new objects in every run, but always do
    the same.  Stored with every concept as the fingerprint of its data, so a change here makes banks forget theirs.
    """
    digest = hashlib.sha256()
    for value in _flat(values):
        digest.update(f"{type(value).__name__}:".encode())
        if isinstance(value, Tensor):
            digest.update(str(tuple(value.shape)).encode())
            digest.update(np.ascontiguousarray(value.detach().float().cpu().numpy()).tobytes())
        else:
            digest.update(str(value).encode())
    return digest.hexdigest()


def _flat(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        elif hasattr(value, "weights"):
            yield from _flat([type(value).__name__, value.weights])
        elif isinstance(value, Tensor) or not callable(value):
            yield value
