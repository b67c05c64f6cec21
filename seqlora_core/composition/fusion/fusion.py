"""What a fusion is, what it may ask for, and how one is run and measured."""

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
    """Everything that decides what a fusion computes; the defaults are those of the published codes, where they say.

    Attributes:
        rank: the largest of the result in any layer; None cuts nothing.
        seed, sampling_steps: of the pictures that are sampled to see what layers read.
        rows: how many inputs of each layer and pass are kept for `loraclr`, which compares single outputs.
        ridge: added to the Gram matrices of the closed forms, relative to the mean of their diagonal.
        solver: of gradient-fusion, "exact" or "lbfgs".
        iterations: of gradient-fusion's L-BFGS and of loraclr's AdamW.
        step_size, margin, mse_weight, norm_weight: of loraclr.
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

    def __post_init__(self) -> None:
        if self.solver not in ("exact", "lbfgs"):
            raise UserError(f"solver must be exact or lbfgs, not {self.solver!r}.")
        for name in ("rank", "sampling_steps", "rows", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if self.ridge < 0:
            raise UserError(f"ridge must be at least 0, not {self.ridge}.")


class Source(Protocol):
    """The base model as a fusion sees it; `from_base.BaseSource`, or a small known answer in a test."""

    def inputs(self, part: SelectedConcept, layers: Collection[str]) -> Mapping[str, LayerInputs]:
        """What each of these layers reads while the base with this concept alone samples a picture of it.

        Keys and values of text get the features of the concept's words only.
        """

    def words(self, part: SelectedConcept) -> Tensor:
        """Text features of the concept's words, up to the end token: [t, d]."""

    def captions(self, captions: Sequence[str]) -> Tensor:
        """Text features of all words of other captions: [t, d]."""

    def weight(self, layer: str) -> Tensor:
        """W0 [m, n] float32."""

    def between(self) -> None:
        """Called before every layer that takes its time; may raise."""


@dataclass(frozen=True)
class Fusion:
    """A fusion.

    Attributes:
        run: (parts, source or None, settings) -> one update A B^T a layer, of any rank.
        weigh: of a weighted sum, the weights that the strengths become; other fusions have none, and `run` needs a
            source.
    """

    name: str
    run: Callable[[Sequence[SelectedConcept], Source | None, FusionSettings], dict[str, Adapter]]
    weigh: Callable[[Sequence[float]], list[float]] | None = None

    @property
    def reads_base(self) -> bool:
        """Whether `run` needs a source."""
        return self.weigh is None


@dataclass(frozen=True)
class Fused:
    """The result of a fusion.

    Attributes:
        adapters: the fused update by canonical layer name.
        rank: the largest.
        kept_energy: share of |dW|^2 that the cut to the rank has left, in the layer where that is least.
        seconds: all in all, with the forward passes.
        peak_bytes: tensors that the fusion held at once, at most, besides the base and the concepts.
    """

    adapters: dict[str, Adapter]
    rank: int
    kept_energy: float
    seconds: float
    peak_bytes: int


def fuse(
    fusion: Fusion, parts: Sequence[SelectedConcept], settings: FusionSettings, source: Source | None = None
) -> Fused:
    """Run a fusion, cut its result to the rank, and say what it cost.

    Raises:
        UserError: it needs a source and has none; or what the fusion itself refuses.
    """
    if fusion.reads_base and source is None:
        raise UserError(
            f"The fusion {fusion.name} looks at what the layers of the base read, so it needs the base model: "
            "give it with --base."
        )
    started = time.monotonic()
    with PeakMemory() as memory, torch.no_grad():
        full = fusion.run(parts, source, settings)
        adapters, kept_energy = {}, 1.0
        for layer, adapter in full.items():
            adapters[layer], kept = (adapter, 1.0) if settings.rank is None else truncate(adapter, settings.rank)
            kept_energy = min(kept_energy, kept)
    rank = max((adapter.rank for adapter in adapters.values()), default=0)
    return Fused(adapters, rank, kept_energy, time.monotonic() - started, memory.peak_bytes)
