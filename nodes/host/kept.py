"""What was encoded for one node and serves the next: embeddings and latents, by a hash of all that decides them."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

_NOT_USED = ("decoder", "post_quant", "text_projection", "logit_scale")
_LIMIT = 64 * 2**20  # bytes: some 280 prompts


class Kept:
    """Tensors by key; once they exceed the limit, those that were not used for longest are dropped.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit, self._size = limit, 0
        self._tensors: OrderedDict[str, Tensor] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def get(self, key: str) -> Tensor | None:
        """The tensor under a key, which nobody may change; None if there is none (any more)."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
        return self._tensors.get(key)

    def put(self, key: str, tensor: Tensor) -> Tensor:
        """Keep a copy on the CPU in float32, and return it; it can take part in training."""
        with torch.inference_mode(False):
            copy = tensor.to("cpu", torch.float32, copy=True)
        if key in self._tensors:
            self._size -= self._tensors.pop(key).nbytes
        self._tensors[key] = copy
        self._size += copy.nbytes
        while self._size > self._limit:
            self._size -= self._tensors.popitem(last=False)[1].nbytes
        return copy


KEPT = Kept()


def used_to_encode(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the weights of CLIPs and VAEs, by name, those that embeddings and latents depend on."""
    return {name: weight for name, weight in weights.items() if not any(part in name for part in _NOT_USED)}
