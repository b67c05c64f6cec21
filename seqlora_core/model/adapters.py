"""Low-rank adapters of linear layers, added to the outputs of a frozen model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Adapter:
    """One layer's low-rank update dW = up @ down, with the names of LoRA files.

    A and B are the paper's: dW = A B^T, so A is `up` and B is `down` transposed.  PEFT and diffusers use the two
    letters the other way round: their lora_A is `down` and their lora_B is `up`.

    Attributes:
        up: [m, r], the coefficients.
        down: [r, n], the basis as rows.
    """

    up: Tensor
    down: Tensor

    @classmethod
    def from_factors(cls, A: Tensor, B: Tensor) -> "Adapter":
        """Return the adapter with the paper's A [m, r] and B [n, r]."""
        return cls(A, B.mT)

    @property
    def A(self) -> Tensor:
        """The paper's coefficients, [m, r]."""
        return self.up

    @property
    def B(self) -> Tensor:
        """The paper's basis, [n, r]."""
        return self.down.mT

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The paper's A [m, r] and B [n, r]."""
        return self.A, self.B

    @property
    def rank(self) -> int:
        """The number of directions, r."""
        return self.down.shape[0]

    @property
    def widths(self) -> tuple[int, int]:
        """The widths of the layer's input and output, n and m."""
        return self.down.shape[1], self.up.shape[0]

    def to(self, device: torch.device) -> "Adapter":
        """Return the adapter on another device."""
        return Adapter(self.up.to(device), self.down.to(device))

    def scaled(self, strength: float) -> "Adapter":
        """Return the adapter with a strength multiplied into `up`."""
        return Adapter(strength * self.up, self.down)


def update_norm(adapter: Adapter) -> float:
    """Compute |A B^T| (Frobenius) as the root of tr((A^T A)(B^T B)), without forming the product [m, n]."""
    A, B = adapter.A.double(), adapter.B.double()
    return float(((A.mT @ A) * (B.mT @ B)).sum().clamp_min(0).sqrt())


Scale = Callable[[str, Tensor], Tensor]  # (layer, x B [rows, tokens, r]) -> x B, scaled where an adapter acts less


def unscaled(layer: str, down: Tensor) -> Tensor:
    """The `Scale` of adapters that act on every token alike."""
    return down


@contextmanager
def attach(
    layers: Mapping[str, nn.Module],
    adapters: Mapping[str, Adapter],
    rows: Callable[[], Tensor | None] = lambda: None,
    scale: Scale = unscaled,
) -> Iterator[None]:
    """Add `x B A^T` to the output of each layer that has an entry in `adapters`, while the block lasts.

    The weights are never touched, so leaving the block restores the model bit for bit, whether its weights are
    patched, quantized or in low precision.

    Args:
        layers: by canonical name.
        adapters: by canonical name; looked up at every call, so replacing an entry takes effect at once.
        rows: called at every call of a layer; returns the rows of the batch to act on, as indices [k] on the layer's
            device, or None for all.
        scale: called at every call of a layer that has an adapter; scales its directions token by token.
    """

    def hook_for(name: str):
        def add_adapter(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            adapter = adapters.get(name)
            if adapter is None:
                return output
            x, chosen = inputs[0], rows()
            if chosen is not None:
                if not len(chosen):
                    return output
                x = x.index_select(0, chosen)
            down = scale(name, F.linear(x, adapter.down.to(x.dtype)))  # [..., n] -> [..., r]
            update = F.linear(down, adapter.up.to(down.dtype)).to(output.dtype)  # [..., r] -> [..., m]
            return output + update if chosen is None else output.index_add(0, chosen, update)

        return add_adapter

    handles = [layer.register_forward_hook(hook_for(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sum_adapters(parts: Sequence[tuple[Mapping[str, Adapter], float]]) -> dict[str, Adapter]:
    """Sum adapters: `sum_i s_i A_i B_i^T` as one adapter `[s_1 A_1 ...] [B_1 ...]^T` per layer.

    Its rank is the sum of the ranks.  Concatenating loses nothing, and a host applies (and rounds) one patch instead
    of many.

    Args:
        parts: (adapters by canonical layer name, strength) of each summand.
    """
    layers = dict.fromkeys(layer for adapters, _ in parts for layer in adapters)
    composed = {}
    for layer in layers:
        present = [(adapters[layer], strength) for adapters, strength in parts if layer in adapters]
        up = torch.cat([strength * adapter.up for adapter, strength in present], dim=1)  # [m, sum of ranks]
        down = torch.cat([adapter.down for adapter, _ in present])  # [sum of ranks, n]
        composed[layer] = Adapter(up, down)
    return composed
