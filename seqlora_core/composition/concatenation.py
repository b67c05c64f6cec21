"""Summing concepts: one adapter a layer whose product is the sum of the parts (eq. 3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bank import Bank, Concept, lora_file
from ..errors import UserError
from ..files import write_atomically
from ..model.layers import Adapter, LayerShape


@dataclass(frozen=True)
class Part:
    """One concept of a composition.

    Attributes:
        subject: what prompts call it, "TOKEN CLASS".
        adapters: by canonical layer name, without the strength.
    """

    name: str
    subject: str
    adapters: Mapping[str, Adapter]
    strength: float

    def scaled(self) -> dict[str, Adapter]:
        """Its adapters with the strength multiplied in."""
        return {layer: Adapter(self.strength * A, B) for layer, (A, B) in self.adapters.items()}


def adapted_layers(parts: Sequence[Part]) -> list[str]:
    """Every layer that any of them adapts."""
    return list(dict.fromkeys(layer for part in parts for layer in part.adapters))


def parse_selection(text: str) -> tuple[str, float]:
    """`NAME` or `NAME:STRENGTH` -> (name, strength); the strength is 1 where none is given.

    Raises:
        UserError: the strength is not a finite number.
    """
    name, colon, strength = text.partition(":")
    if not colon:
        return name.strip(), 1.0
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"The strength of {name.strip()!r} is not a number: {strength.strip()!r}; write {name.strip()}:0.8."
        )
    return name.strip(), value


def parse_selections(text: str) -> list[tuple[str, float]]:
    """`NAME[:STRENGTH]` entries, separated by commas or line ends; empty entries are skipped."""
    entries = text.replace("\n", ",").split(",")
    return [parse_selection(entry) for entry in entries if entry.strip()]


def sum_adapters(parts: Sequence[tuple[Mapping[str, Adapter], float]]) -> dict[str, Adapter]:
    """`sum_i s_i A_i B_i^T` as one adapter a layer, `[s_1 A_1 ...] [B_1 ...]^T`, with the sum of the ranks.

    Concatenating instead of multiplying out loses nothing, and a host applies (and rounds) one patch instead of many.
    """
    layers = dict.fromkeys(layer for adapters, _ in parts for layer in adapters)
    composed = {}
    for layer in layers:
        present = [(adapters[layer], strength) for adapters, strength in parts if layer in adapters]
        A = torch.cat([strength * adapter.A for adapter, strength in present], dim=1)  # [m, sum of ranks]
        B = torch.cat([adapter.B for adapter, _ in present], dim=1)  # [n, sum of ranks]
        composed[layer] = Adapter(A, B)
    return composed


class Stack:
    """One layer's factors of several concepts side by side, as they are read one after the other.

    Args:
        room: at least the sum of the ranks to come.

    Attributes:
        owner: the concept of each column.
    """

    def __init__(self, shape: LayerShape, room: int) -> None:
        self._A, self._B = torch.empty(room, shape.out), torch.empty(room, shape.width)  # A^T and B^T
        self.owner: list[int] = []

    def append(self, owner: int, adapter: Adapter, strength: float) -> None:
        """Put in one concept's factors, with the strength in A."""
        taken = slice(len(self.owner), len(self.owner) + adapter.A.shape[1])
        torch.mul(adapter.A.mT, strength, out=self._A[taken])
        self._B[taken] = adapter.B.mT
        self.owner += [owner] * adapter.A.shape[1]

    @property
    def adapter(self) -> Adapter:
        """Their sum."""
        used = len(self.owner)
        return Adapter(self._A[:used].mT, self._B[:used].mT)  # [m, sum of ranks], [n, sum of ranks]


def stack(bank: Bank, selection: Sequence[tuple[str, float]]) -> dict[str, Stack]:
    """The factors of some of a bank's concepts, side by side in each layer that any of them adapts.

    Raises:
        UserError: as `select`.
    """
    concepts = _selected(bank, selection)
    stacks = {}
    for layer, shape in bank.manifest.layers.items():
        if room := sum(concept.rank for concept in concepts if layer not in concept.layers_skipped):
            stacks[layer] = Stack(shape, room)
    for index, adapters in enumerate(bank.read(concepts)):
        for layer, adapter in adapters.items():
            stacks[layer].append(index, adapter, selection[index][1])
    return stacks


def select(bank: Bank, selection: Sequence[tuple[str, float]]) -> list[Part]:
    """Some of a bank's concepts, each with its strength (negative and zero too).

    Raises:
        UserError: nothing is selected, a name is unknown or given twice, or a file is damaged.
    """
    concepts = _selected(bank, selection)
    loaded = bank.load(concepts)
    return [
        Part(concept.name, concept.subject, loaded[concept.name], strength)
        for concept, (_, strength) in zip(concepts, selection, strict=True)
    ]


def _selected(bank: Bank, selection: Sequence[tuple[str, float]]) -> list[Concept]:
    if not selection:
        raise UserError("No concept is selected: name at least one.")
    concepts = [bank.concept(name) for name, _ in selection]
    names = [concept.name for concept in concepts]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{', '.join(sorted(repeated))} is selected more than once: give it one strength.")
    return concepts


def compose(bank: Bank, selection: Sequence[tuple[str, float]]) -> dict[str, Adapter]:
    """The sum of some of a bank's concepts.

    Raises:
        UserError: as `select`.
    """
    return {layer: stacked.adapter for layer, stacked in stack(bank, selection).items()}


def trigger_words(bank: Bank, selection: Sequence[tuple[str, float]]) -> str:
    """What to write into a prompt for the selected concepts: "sksdog dog, skscat cat"."""
    concepts = [bank.concept(name) for name, _ in selection]
    return ", ".join(concept.subject for concept in concepts)


def save_composed(
    bank: Bank, selection: Sequence[tuple[str, float]], path: Path, adapters: Mapping[str, Adapter], fusion: str = "sum"
) -> None:
    """Write composed adapters as one stock LoRA file, with a header that says what is in it.

    Raises:
        UserError: the file cannot be written.
    """
    header = lora_file.metadata(
        title=" + ".join(bank.concept(name).name for name, _ in selection),
        trigger=trigger_words(bank, selection),
        base_name=bank.manifest.base.name,
        rank=max((adapter.B.shape[1] for adapter in adapters.values()), default=0),
        extra={"bank": bank.manifest.id, "composed": [list(part) for part in selection], "fusion": fusion},
    )
    try:
        write_atomically(path, lora_file.serialize(adapters, header))
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error


def load_composed(path: Path) -> dict[str, Adapter]:
    """Read a file that `save_composed` wrote, or another LoRA of attention layers only.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The LoRA {path} cannot be read: {error.strerror}.") from error
    return lora_file.deserialize(content, str(path))


def check_fits(adapters: Mapping[str, Adapter], layers: Mapping[str, LayerShape], source: str) -> None:
    """Raises UserError where adapters from `source` are not of the shapes of a base's layers."""
    for layer, (A, B) in adapters.items():
        if layers.get(layer) != LayerShape(B.shape[0], A.shape[0]):
            raise UserError(f"The LoRA {source} does not fit this base at {layer}: use the base it was made on.")
