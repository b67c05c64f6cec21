"""What a graph says: its model's file, and the state of what it gives and names."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from comfy_api.latest import io
from torch import Tensor

_SOME_MODEL = "the connected model"


def model_file(node: type[io.ComfyNode]) -> str:
    """The file that the MODEL of a running node was loaded from, as far as its graph tells; a merge of two has none."""
    nodes, at, seen = node.hidden.prompt or {}, node.hidden.unique_id, set()
    while at in nodes and at not in seen:
        seen.add(at)
        inputs = nodes[at]["inputs"]
        for name in ("ckpt_name", "unet_name"):
            if isinstance(inputs.get(name), str):
                return inputs[name]
        link = inputs.get("model")
        at = link[0] if isinstance(link, list) else None
    return _SOME_MODEL


def files_cache_key(files: Iterable[Path]) -> str:
    """A text that differs after every change of the files."""
    return "/".join(f"{file.name}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in sorted(files))


def fingerprint(given: Iterable[object]) -> str:
    """A hash of what a graph gave: texts, numbers and tensors, nested as they may be, also in the host's patches.

    Functions, which the patches of merged models hold, are left out: they are new objects every time, and all the same.
    """
    digest = hashlib.sha256()
    for part in _flat(given):
        digest.update(f"{type(part).__name__}:".encode())
        if isinstance(part, Tensor):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(np.ascontiguousarray(part.detach().float().cpu().numpy()).tobytes())
        else:
            digest.update(str(part).encode())
    return digest.hexdigest()


def _flat(given: Iterable[object]) -> Iterator[object]:
    for part in given:
        if isinstance(part, (list, tuple)):
            yield from _flat(part)
        elif hasattr(part, "weights"):
            yield from _flat([type(part).__name__, part.weights])
        elif isinstance(part, Tensor) or not callable(part):
            yield part
