"""The report on a bank: overlap of every pair of concepts, free directions per layer, damaged files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .. import subspace
from ..errors import UserError
from ..files import is_plain
from ..model.adapters import Adapter
from .bank import Bank
from .manifest import Concept

OVERLAP_LIMIT = 1e-5
MAX_PAIRS_SHOWN = 5


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`.

    Attributes:
        max_overlap: the largest of `pairs`: 0 where all are orthogonal, 1 where two share a direction.
        pairs: (earlier, later) -> the largest cosine of a principal angle between their spans, over layers.
        layers: canonical name -> {"width", "used", "free"} in directions.
        problems: one sentence per damaged file; the other figures are those of the remaining concepts.
    """

    max_overlap: float
    pairs: dict[tuple[str, str], float]
    layers: dict[str, dict[str, int]]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether every file is intact and every pair orthogonal."""
        return not self.problems and self.max_overlap <= OVERLAP_LIMIT

    def tables(self) -> list[str]:
        """List the pairs that overlap most, and the free directions of the layers of each width."""
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
    """Read every file of a bank and measure it; a damaged file is a problem of the report, never an error."""
    loaded, problems = bank.load_intact()
    bank.words(problems=problems)
    layers = {}
    for layer, shape in bank.manifest.layers.items():
        used = subspace.occupied((adapters[layer].B for adapters in loaded.values() if layer in adapters), shape.width)
        layers[layer] = {"width": shape.width, "used": used.shape[1], "free": shape.width - used.shape[1]}
    pairs = pair_overlaps(loaded)
    return Inspection(max(pairs.values(), default=0.0), pairs, layers, problems)


def missing_files(bank: Bank) -> list[str]:
    """A sentence for each concept without a file; whether the others are whole is seen where they are read."""
    return [
        f"The file of {concept.name!r} is missing: {concept.file}. Put it back, or remove the concept."
        for concept in bank.concepts
        if not is_plain(bank.folder / concept.file)
    ]


def least_room(bank: Bank) -> int:
    """The free directions of the fullest layer that a concept adapts; see `fullest_layer`."""
    return fullest_layer(bank)[0]


def fullest_layer(bank: Bank) -> tuple[int, int]:
    """The free directions and the width of the fullest layer that a concept adapts, if no two concepts share any.

    Without concepts, those of the narrowest layer.
    """
    used = {
        layer: sum(concept.rank for concept in bank.concepts if layer not in concept.layers_skipped)
        for layer in bank.manifest.layers
    }
    adapted = [layer for layer, taken in used.items() if taken] or list(used)
    widths = {layer: bank.manifest.layers[layer].width for layer in adapted}
    return min((max(0, width - used[layer]), width) for layer, width in widths.items())


def pair_overlaps(concepts: Mapping[str, Mapping[str, Adapter]]) -> dict[tuple[str, str], float]:
    """Measure the largest overlap (see `subspace.overlaps`) over all layers, for every pair of `concepts`."""
    stacks = []
    for layer in {layer for adapters in concepts.values() for layer in adapters}:
        bases = [(i, adapters[layer].B) for i, adapters in enumerate(concepts.values()) if layer in adapters]
        stacks.append((torch.cat([B.mT for _, B in bases]).mT, [i for i, B in bases for _ in range(B.shape[1])]))
    return largest_overlaps(list(concepts), stacks)


def largest_overlaps(
    names: Sequence[str], layers: Iterable[tuple[Tensor, Sequence[int]]]
) -> dict[tuple[str, str], float]:
    """Measure as `pair_overlaps`, from bases that lie side by side.

    Args:
        names: of the concepts.
        layers: for each layer, the bases [n, sum of ranks] and the concept of each column, as an index of `names`.
    """
    largest = torch.zeros(len(names), len(names), dtype=torch.float64)
    for B, owner in layers:
        largest = subspace.overlaps(B, owner, len(names), largest)
    table = largest.tolist()
    return {(names[i], names[j]): table[i][j] for i, j in combinations(range(len(names)), 2)}


def overlaps_with(bank: Bank, concept: Concept) -> dict[str, float]:
    """Measure the overlap, as in `pair_overlaps`, of one concept with each other one whose file is intact.

    Raises:
        UserError: the concept's own file is damaged.
    """
    loaded, _ = bank.load_intact()
    current = next((other for other in bank.concepts if other.id == concept.id), None)
    if current is None:
        raise UserError(f"The concept {concept.name!r} is no longer in the bank {bank.folder}: it was removed.")
    own = loaded.pop(current.name, None)
    if own is None:
        own = bank.load([concept])[concept.name]
    return {
        name: pair_overlaps({concept.name: own, name: adapters})[concept.name, name]
        for name, adapters in loaded.items()
    }
