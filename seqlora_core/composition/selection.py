"""Select the concepts of a bank to compose, each with a strength."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..bank import Bank, Concept
from ..errors import UserError
from ..model.adapters import Adapter


@dataclass(frozen=True)
class SelectedConcept:
    """One concept of a composition.

    Attributes:
        subject: "TOKEN CLASS", the words for it in prompts.
        adapters: by canonical layer name, without the strength.
        strength: the factor of its update; may be negative or 0.
    """

    name: str
    subject: str
    adapters: Mapping[str, Adapter]
    strength: float

    def scaled(self) -> dict[str, Adapter]:
        """Return the adapters with the strength multiplied in."""
        return {layer: adapter.scaled(self.strength) for layer, adapter in self.adapters.items()}


def adapted_layers(parts: Sequence[SelectedConcept]) -> list[str]:
    """Return every layer that any of the concepts adapts."""
    return list(dict.fromkeys(layer for part in parts for layer in part.adapters))


def parse_selection(text: str) -> tuple[str, float]:
    """Parse `NAME` or `NAME:STRENGTH` into (name, strength); the default strength is 1.

    Raises:
        UserError: the strength is not a finite number, or float32 cannot hold it.
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
    if abs(value) > torch.finfo(torch.float32).max:
        raise UserError(f"The strength {strength.strip()} of {name.strip()!r} is too large: write {name.strip()}:0.8.")
    return name.strip(), value


def parse_selections(text: str) -> list[tuple[str, float]]:
    """Parse `NAME[:STRENGTH]` entries, separated by commas or line ends; skip empty entries.

    Raises:
        UserError: see `parse_selection`.
    """
    entries = text.replace("\n", ",").split(",")
    return [parse_selection(entry) for entry in entries if entry.strip()]


def select(bank: Bank, selection: Sequence[tuple[str, float]]) -> list[SelectedConcept]:
    """Load selected concepts of a bank.

    Args:
        selection: (name, strength) of each concept.

    Raises:
        UserError: nothing is selected, a name is unknown or given twice, or a file is damaged.
    """
    concepts = chosen_concepts(bank, selection)
    loaded = bank.load(concepts)
    return [
        SelectedConcept(concept.name, concept.subject, loaded[concept.name], strength)
        for concept, (_, strength) in zip(concepts, selection, strict=True)
    ]


def chosen_concepts(bank: Bank, selection: Sequence[tuple[str, float]]) -> list[Concept]:
    """Look up the records of selected concepts, in the order of the selection.

    Raises:
        UserError: nothing is selected, or a name is unknown or given twice.
    """
    if not selection:
        raise UserError("No concept is selected: name at least one.")
    concepts = [bank.concept(name) for name, _ in selection]
    names = [concept.name for concept in concepts]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UserError(f"{', '.join(sorted(repeated))} is selected more than once: give it one strength.")
    return concepts


def trigger_words(bank: Bank, selection: Sequence[tuple[str, float]]) -> str:
    """Return the words for the selected concepts in a prompt: "sksdog dog, skscat cat"."""
    concepts = [bank.concept(name) for name, _ in selection]
    return ", ".join(concept.subject for concept in concepts)
