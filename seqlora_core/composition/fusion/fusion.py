"""The record of a fusion, what it needs from a base model, and how it is run and measured."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import UserError
from ...model.activations import LayerInputs
from ...model.adapters import Adapter
from ..selection import SelectedConcept
from .low_rank import truncate
from .peak_memory import PeakMemory


@dataclass(frozen=True)
class FusionSettings:
    """Everything that decides what a fusion computes; the defaults follow the published codes.

    Attributes:
        rank: the largest rank of the result in any layer; None keeps the full rank.
        seed: seed of the images that are sampled to capture activations.
        sampling_steps: sampler steps of those images.
        rows: inputs to keep per layer and pass for `loraclr`, which compares single outputs.
        ridge: added to the Gram matrices of the closed forms, relative to the mean of their diagonal.
        solver: the solver of gradient-fusion, "exact" or "lbfgs".
        iterations: iterations of gradient-fusion's L-BFGS and of loraclr's AdamW.
        step_size: AdamW's learning rate in loraclr.
        margin: the margin of loraclr's contrastive loss, in units of a whole output.
        mse_weight: weight of loraclr's mean squared error.
        norm_weight: weight of loraclr's |dW|_F.
        routing_ridge: added to the mean Gram matrix of ssr-merge, as published not relative to it.
        density: share of the numbers of each update that ties keeps, above 0 and at most 1.

    Raises:
        UserError: a value is out of range; the message names the setting.
    """

    rank: int | None = None
    seed: int = 0
    sampling_steps: int = 20
    rows: int = 16
    ridge: float = 1e-6
    solver: str = "lbfgs"
    iterations: int = 50
    step_size: float = 1e-4
    margin: float = 0.5
    mse_weight: float = 0.1
    norm_weight: float = 1e-3
    routing_ridge: float = 1e-4
    density: float = 0.2

    def __post_init__(self) -> None:
        if self.solver not in ("exact", "lbfgs"):
            raise UserError(f"solver must be exact or lbfgs, not {self.solver!r}.")
        for name in ("rank", "sampling_steps", "rows", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        for name in ("ridge", "routing_ridge"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}.")
        if not 0 < self.density <= 1:
            raise UserError(f"density must be above 0 and at most 1, not {self.density}.")


class Source(Protocol):
    """The base model as a fusion uses it: a `ModelSource`, or known activations in a test."""

    def inputs(self, part: SelectedConcept, layers: Collection[str]) -> Mapping[str, LayerInputs]:
        """Capture what these layers receive while the base with this concept only samples an image of it.

        Keys and values of text get the features of the concept's words only.
        """

    def words(self, part: SelectedConcept) -> Tensor:
        """Return text features of the concept's words, up to the end token: [t, d]."""

    def captions(self, captions: Sequence[str]) -> Tensor:
        """Return text features of all words of other captions: [t, d]."""

    def weight(self, layer: str) -> Tensor:
        """Return W0 of a layer, [m, n] float32."""

    def between(self) -> None:
        """Called before every layer that takes long; may raise to cancel."""


@dataclass(frozen=True)
class Fusion:
    """A way to combine concepts into one update.

    Attributes:
        name: its name on the command line and in the nodes.
        run: (concepts, source or None, settings) -> one update A B^T per layer, of any rank.
        weigh: turns strengths into the weights of a weighted sum; None for other fusions.
        reads_base: whether `run` needs a source.
    """

    name: str
    run: Callable[[Sequence[SelectedConcept], Source | None, FusionSettings], dict[str, Adapter]]
    weigh: Callable[[Sequence[float]], list[float]] | None = None
    reads_base: bool = False


@dataclass(frozen=True)
class Fused:
    """The result of a fusion.

    Attributes:
        adapters: the fused update by canonical layer name.
        rank: the largest rank in any layer.
        kept_energy: share of |dW|^2 that is left after the cut to the rank, in the layer that lost most.
        seconds: the whole time, including forward passes.
        peak_bytes: the most bytes of tensors that the fusion held at once, apart from the base and the concepts.
    """

    adapters: dict[str, Adapter]
    rank: int
    kept_energy: float
    seconds: float
    peak_bytes: int


def fuse(
    fusion: Fusion, parts: Sequence[SelectedConcept], settings: FusionSettings, source: Source | None = None
) -> Fused:
    """Run a fusion, cut its result to the rank, and measure its cost.

    Raises:
        UserError: the fusion needs a source and has none, or it refuses the concepts.
    """
    if fusion.reads_base and source is None:
        raise UserError(f"The fusion {fusion.name} needs the activations of the base model: give it with --base.")
    started = time.monotonic()
    with PeakMemory() as memory, torch.no_grad():
        full = fusion.run(parts, source, settings)
        adapters, kept_energy = {}, 1.0
        for layer, adapter in full.items():
            adapters[layer], kept = (adapter, 1.0) if settings.rank is None else truncate(adapter, settings.rank)
            kept_energy = min(kept_energy, kept)
    rank = max((adapter.rank for adapter in adapters.values()), default=0)
    return Fused(adapters, rank, kept_energy, time.monotonic() - started, memory.peak_bytes)
