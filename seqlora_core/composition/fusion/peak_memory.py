"""Measure the memory of a computation, in the same way on every device."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are created in the block and still alive.

    Memory that kernels use internally is not counted.

    Attributes:
        peak_bytes: the most bytes alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._bytes = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        known = {_address(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _address(leaf) not in known:  # else a view, or changed in place
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._alive:
            return
        self._alive.add(address)
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._release, address, storage.nbytes())

    def _release(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self._bytes -= size


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
