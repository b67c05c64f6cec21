"""What a UNet's layers read while it works: Gram matrices of their inputs, streamed, and a few of the inputs.

Nothing grows with the number of tokens but the kept rows: a layer costs n x n floats, however long the model runs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .sd15 import SD15

TEXT_GROUP = "text"


@dataclass(frozen=True)
class LayerInputs:
    """The inputs x of one layer over some forward passes, float32.

    Attributes:
        gram: [n, n], the sum of x x^T over all tokens.
        tokens: how many those were.
        rows: [k, n], some of the inputs as they were, in the order of the passes; k is 0 where none were asked for.
    """

    gram: Tensor
    tokens: int
    rows: Tensor

    @property
    def covariance(self) -> Tensor:
        """Uncentred covariance Sigma = mean of x x^T, [n, n]."""
        return self.gram / max(self.tokens, 1)

    @classmethod
    def of_rows(cls, rows: Tensor) -> "LayerInputs":
        """The inputs `rows` [k, n] themselves, all kept."""
        return cls(rows.mT @ rows, rows.shape[0], rows)


def input_group(layer: str) -> str:
    """Layers of one group read the very same input: q, k and v of a self-attention, and all keys and values of text."""
    match = SD15.self_attention.fullmatch(layer)
    if match:
        return match[1]
    return TEXT_GROUP if SD15.text_layer.fullmatch(layer) else layer


@torch.no_grad()
def capture_inputs(
    layers: Mapping[str, nn.Module], run_model: Callable[[], object], rows: int = 0
) -> dict[str, LayerInputs]:
    """Watch the inputs of layers while a model runs; on the CPU afterwards.

    Args:
        layers: by canonical name; one of each group is watched, and all of the group share the result.
        run_model: called once without arguments; every forward pass that it makes is counted.
        rows: how many rows of each pass to keep, evenly spaced, so that the same positions are kept in every run.
    """
    watched = {input_group(name): layer for name, layer in reversed(layers.items())}
    recorders = {group: _Recorder(rows) for group in watched}
    handles = [layer.register_forward_pre_hook(recorders[group]) for group, layer in watched.items()]
    try:
        run_model()
    finally:
        for handle in handles:
            handle.remove()
    results = {group: recorder.result() for group, recorder in recorders.items() if recorder.tokens}
    return {name: results[input_group(name)] for name in layers if input_group(name) in results}


@dataclass
class OutputEnergy:
    """How much one layer gives over some forward passes."""

    total: Tensor | float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Mean of |y|^2 over all tokens."""
        return float(self.total) / max(self.tokens, 1)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        y = output.detach().float()
        self.total = self.total + y.square().sum()
        self.tokens += y.numel() // y.shape[-1]


@contextmanager
def capture_output_energy(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, OutputEnergy]]:
    """Watch the outputs of layers, by canonical name, while the block lasts."""
    energies = {name: OutputEnergy() for name in layers}
    handles = [layer.register_forward_hook(energies[name]) for name, layer in layers.items()]
    try:
        yield energies
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """A forward pre-hook that adds up what it sees."""

    def __init__(self, rows: int) -> None:
        self.gram: Tensor | float = 0.0
        self.tokens = 0
        self.kept: list[Tensor] = []
        self._rows = rows

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float().flatten(0, -2)  # [batch, tokens, n] -> [batch * tokens, n]
        self.gram = self.gram + x.mT @ x
        self.tokens += x.shape[0]
        self.kept.append(evenly_spaced(x, min(self._rows, x.shape[0])).cpu())

    def result(self) -> LayerInputs:
        return LayerInputs(self.gram.cpu(), self.tokens, torch.cat(self.kept))


def evenly_spaced(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows [k, n], from the first to the last: [count, n]."""
    return rows[torch.linspace(0, rows.shape[0] - 1, count).round().long()]
