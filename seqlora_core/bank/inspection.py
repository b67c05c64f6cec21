"""What `inspect` says of a bank: orthogonality of every pair, capacity left in each layer, integrity of files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .. import subspace
from ..errors import UserError
from ..model.adapters import Adapter
from .bank import Bank
from .manifest import Concept

OVERLAP_LIMIT = 1e-5
MAX_PAIRS_SHOWN = 5


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Attributes:
        pairs: (earlier, later) -> their largest normalized `|B_j^T B_i|` over layers.
        layers: canonical name -> {"width", "used", "free"} in directions.
        problems: one sentence for each broken file.
    """

    max_overlap: float
    pairs: dict[tuple[str, str], float]
    layers: dict[str, dict[str, int]]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Every file is intact and every pair orthogonal."""
        return not self.problems and self.max_overlap <= OVERLAP_LIMIT

    def tables(self) -> list[str]:
        """The pairs that overlap most, and the room in layers of each width, a line each."""
        lines = [f"largest overlap of two concepts: {self.max_overlap:.1e}"]
        loudest = sorted(self.pairs.items(), key=lambda pair: -pair[1])[:MAX_PAIRS_SHOWN]
        lines += [f"  {value:.1e}  {first} - {second}" for (first, second), value in loudest]
        by_width: dict[int, list[int]] = {}
        for layer in self.layers.values():
            by_width.setdefault(layer["width"], []).append(layer["free"])
        return lines + [
            f"{len(free)} layers of width {width}: {min(free)} to {max(free)} directions free"
            for width, free in sorted(by_width.items())
        ]


def inspect(bank: Bank) -> Inspection:
    """Read every file of a bank and measure it."""
    loaded, problems = read_files(bank)
    layers = {}
    for layer, shape in bank.manifest.layers.items():
        used = subspace.occupied((adapters[layer].B for adapters in loaded.values() if layer in adapters), shape.width)
        layers[layer] = {"width": shape.width, "used": used.shape[1], "free": shape.width - used.shape[1]}
    pairs = pair_overlaps(loaded)
    return Inspection(max(pairs.values(), default=0.0), pairs, layers, problems)


def read_files(bank: Bank) -> tuple[dict[str, dict[str, Adapter]], list[str]]:
    """The adapters of every concept whose file is whole, and a sentence for each other file."""
    loaded: dict[str, dict[str, Adapter]] = {}
    problems = []
    for concept in bank.refresh().concepts:
        try:
            loaded.update(bank.load([concept]))
        except UserError as error:
            problems.append(str(error))
    return loaded, problems


def missing_files(bank: Bank) -> list[str]:
    """A sentence for each concept without a file; whether the others are whole is seen where they are read."""
    return [
        f"The file of {concept.name!r} is missing: {concept.file}. Put it back, or remove the concept."
        for concept in bank.concepts
        if not (bank.folder / concept.file).is_file()
    ]


def least_room(bank: Bank) -> int:
    """The free directions of the fullest layer that a concept adapts, if no two concepts share any.

    Without concepts, the width of the narrowest layer.
    """
    used = {
        layer: sum(concept.rank for concept in bank.concepts if layer not in concept.layers_skipped)
        for layer in bank.manifest.layers
    }
    adapted = [layer for layer, taken in used.items() if taken] or list(used)
    return max(0, min(bank.manifest.layers[layer].width - used[layer] for layer in adapted))


def pair_overlaps(concepts: Mapping[str, Mapping[str, Adapter]]) -> dict[tuple[str, str], float]:
    """The largest normalized `|B_j^T B_i|` over the layers that two concepts share, for every pair of `concepts`."""
    stacks = []
    for layer in {layer for adapters in concepts.values() for layer in adapters}:
        bases = [(i, adapters[layer].B) for i, adapters in enumerate(concepts.values()) if layer in adapters]
        stacks.append((torch.cat([B.mT for _, B in bases]).mT, [i for i, B in bases for _ in range(B.shape[1])]))
    return largest_overlaps(list(concepts), stacks)


def largest_overlaps(
    names: Sequence[str], layers: Iterable[tuple[Tensor, Sequence[int]]], dtype: torch.dtype = torch.float64
) -> dict[tuple[str, str], float]:
    """As `pair_overlaps`, of bases that stand side by side.

    Args:
        names: of the concepts.
        layers: for each layer, the bases [n, sum of ranks] and the concept of each column, as an index of `names`.
        dtype: float32 tells what is above `OVERLAP_LIMIT` in half the time; below about 1e-7 its figures are rounding.
    """
    largest = torch.zeros(len(names), len(names), dtype=dtype)
    for B, owner in layers:
        largest = torch.maximum(largest, subspace.overlaps(B, owner, len(names), dtype))
    table = largest.tolist()
    return {(names[i], names[j]): table[i][j] for i, j in combinations(range(len(names)), 2)}


def overlaps_with(bank: Bank, concept: Concept) -> dict[str, float]:
    """The overlap, as in `pair_overlaps`, of one concept with each other one of its bank."""
    loaded = bank.load()
    own = loaded.pop(concept.name)
    return {
        name: pair_overlaps({concept.name: own, name: adapters})[concept.name, name]
        for name, adapters in loaded.items()
    }
