"""Capture what a UNet's layers receive and output while it runs: Gram matrices of the inputs, and output energies.

Memory does not grow with the number of tokens, except for the samples that are kept: a layer costs n x n floats
however long the model runs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .sd15 import SD15, receives_text

TEXT_GROUP = "text"


@dataclass(frozen=True)
class LayerInputs:
    """The inputs x of one layer over some forward passes, float32.

    Attributes:
        gram: [n, n], the sum of x x^T over all tokens.
        tokens: the number of tokens.
        samples: [k, n], some of the inputs, in the order of the passes; k is 0 if none were requested.
    """

    gram: Tensor
    tokens: int
    samples: Tensor

    @property
    def covariance(self) -> Tensor:
        """Uncentred covariance Sigma, the mean of x x^T, [n, n]."""
        return self.gram / max(self.tokens, 1)

    @classmethod
    def from_samples(cls, samples: Tensor) -> "LayerInputs":
        """Return the statistics of the given inputs [k, n], keeping all of them."""
        return cls(samples.mT @ samples, samples.shape[0], samples)


def input_group(layer: str) -> str:
    """Return the name of the group of layers that receive the same input as this layer.

    One group is q, k and v of a self-attention; another is all keys and values of the text.
    """
    match = SD15.self_attention.fullmatch(layer)
    if match:
        return match[1]
    return TEXT_GROUP if receives_text(layer) else layer


@torch.no_grad()
def capture_inputs(
    layers: Mapping[str, nn.Module], run_model: Callable[[], object], samples_per_pass: int = 0
) -> dict[str, LayerInputs]:
    """Capture the inputs of layers while a model runs.

    Args:
        layers: by canonical name; only one per input group is captured, and its group shares the result.
        run_model: called once without arguments; every forward pass that it makes is counted.
        samples_per_pass: how many inputs of each pass to keep; they are evenly spaced, so every run keeps the same
            positions.

    Returns:
        The inputs of all layers that ran, by canonical name, on the CPU.
    """
    captured = {input_group(name): layer for name, layer in reversed(layers.items())}
    recorders = {group: _Recorder(samples_per_pass) for group in captured}
    handles = [layer.register_forward_pre_hook(recorders[group]) for group, layer in captured.items()]
    try:
        run_model()
    finally:
        for handle in handles:
            handle.remove()
    results = {group: recorder.result() for group, recorder in recorders.items() if recorder.tokens}
    return {name: results[input_group(name)] for name in layers if input_group(name) in results}


@dataclass
class OutputEnergy:
    """The energy of one layer's outputs y over some forward passes.

    Attributes:
        total: the sum of |y|^2 over all tokens.
        tokens: the number of tokens.
    """

    total: Tensor | float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Mean of |y|^2 over all tokens."""
        return float(self.total) / max(self.tokens, 1)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Count one forward pass; called as a forward hook."""
        y = output.detach().float()
        self.total = self.total + y.square().sum()
        self.tokens += y.numel() // y.shape[-1]


@contextmanager
def capture_output_energy(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, OutputEnergy]]:
    """Capture the output energy of layers, by canonical name, while the block lasts."""
    energies = {name: OutputEnergy() for name in layers}
    handles = [layer.register_forward_hook(energies[name]) for name, layer in layers.items()]
    try:
        yield energies
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """A forward pre-hook that accumulates the inputs of a layer."""

    def __init__(self, samples_per_pass: int) -> None:
        self.gram: Tensor | float = 0.0
        self.tokens = 0
        self.samples: list[Tensor] = []
        self._samples_per_pass = samples_per_pass

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().float().flatten(0, -2)  # [batch, tokens, n] -> [batch * tokens, n]
        self.gram = self.gram + x.mT @ x
        self.tokens += x.shape[0]
        self.samples.append(evenly_spaced(x, min(self._samples_per_pass, x.shape[0])).cpu())

    def result(self) -> LayerInputs:
        return LayerInputs(self.gram.cpu(), self.tokens, torch.cat(self.samples))


def evenly_spaced(rows: Tensor, count: int) -> Tensor:
    """Return `count` of the rows [k, n], evenly spaced from the first to the last: [count, n]."""
    return rows[torch.linspace(0, rows.shape[0] - 1, count).round().long()]
