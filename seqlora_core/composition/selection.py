"""Select the concepts of a bank to compose, each with a strength."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..bank import Bank, Concept
from ..data.words import Words, named_words
from ..errors import UserError
from ..model.adapters import Adapter
from ..training.config import OWN_WORDS

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class SelectedConcept:
    """One concept of a composition.

    Attributes:
        subject: "TOKEN CLASS", or the token alone where it is learned: the words for it in prompts.
        adapters: by canonical layer name, without the strength.
        strength: the factor of its update; may be negative or 0.
        words: the vectors of its learned word, by its token; empty if it has none.
    """

    name: str
    subject: str
    adapters: Mapping[str, Adapter]
    strength: float
    words: Words = field(default_factory=dict)

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


def parse_selections(text: str, known: Collection[str] = ()) -> list[tuple[str, float]]:
    """Parse `NAME[:STRENGTH]` entries, separated by commas or line ends; skip empty entries.

    Also understood are `<lora:NAME:STRENGTH>`, a decimal comma after a colon (`NAME:0,8`), and strengths without a
    colon or comma (`NAME STRENGTH NAME STRENGTH`), as long as all names are known.

    Args:
        known: the names that the bank has; an entry that is one of them is never split.

    Raises:
        UserError: see `parse_selection`.
    """
    names = {name.casefold() for name in known}

    def decimal(match: re.Match) -> str:
        return match[0] if match[2] in names else f"{match[1]}.{match[2]}"

    text = re.sub(r"<\s*lora\s*:([^<>]*)>", r",\1,", text, flags=re.IGNORECASE)
    text = re.sub(r"(:\s*[+-]?\d+),(\d+)(?![\w.])", decimal, text)
    selections = []
    for entry in text.replace("\n", ",").split(","):
        if entry.strip():
            selections += _spaced(entry.strip(), names) or [parse_selection(entry)]
    return selections


def _spaced(entry: str, names: Collection[str]) -> list[tuple[str, float]]:
    """Parse `NAME STRENGTH NAME STRENGTH` of known names; empty for anything else."""
    if entry.casefold() in names:
        return []
    found, name = [], ""
    for word in re.sub("[:=]", " ", entry).split():
        if name.casefold() in names and _NUMBER.fullmatch(word):
            found.append(parse_selection(f"{name}:{word}"))
            name = ""
        else:
            name = f"{name} {word}".strip()
    return [] if name else found


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
        SelectedConcept(concept.name, concept.subject, loaded[concept.name], strength, bank.words([concept]))
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


def describe_missing_concepts(bank: Bank, selection: Sequence[tuple[str, float]], prompts: Sequence[str]) -> list[str]:
    """Report words of the bank in prompts whose concepts are not selected, as sentences."""
    chosen = {bank.concept(name).id for name, _ in selection}
    by_word = {concept.token: concept for concept in bank.concepts if concept.embedding}
    by_word |= {concept.token: concept for concept in bank.concepts if concept.embedding and concept.id in chosen}
    return [
        f"The prompt names {word!r}, whose concept {by_word[word].name!r} is not selected: only its word acts."
        for word in named_words(prompts, list(by_word))
        if by_word[word].id not in chosen
    ]


def describe_trained_on_own_words(bank: Bank, selection: Sequence[tuple[str, float]]) -> list[str]:
    """Report concepts that were trained on their own words alone, and so are not meant for a plain sum."""
    own = [name for name, _ in selection if bank.concept(name).settings.get("acts_on") == OWN_WORDS]
    if not own:
        return []
    return [f"Trained to act on their own words, but summed, so that they change the rest, too: {', '.join(own)}."]


def check_words_selected(bank: Bank, selection: Sequence[tuple[str, float]], prompts: Sequence[str]) -> None:
    """Check that regional prompts name no concept of the bank that is not selected.

    Raises:
        UserError: one does.
    """
    chosen = [bank.concept(name) for name, _ in selection]
    own = [concept.subject for concept in chosen]
    others = {concept.subject: concept.name for concept in bank.concepts if concept.subject not in own}
    for word in named_words(prompts, [*own, *others]):
        if word in others:
            raise UserError(
                f"A region names {word!r}, whose concept {others[word]!r} is not selected: select it, too, or leave "
                "the word out."
            )


def trigger_words(bank: Bank, selection: Sequence[tuple[str, float]]) -> str:
    """Return the words for the selected concepts in a prompt: "sksdog, skscat cat"."""
    concepts = [bank.concept(name) for name, _ in selection]
    return ", ".join(concept.subject for concept in concepts)
