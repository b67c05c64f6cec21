"""The mini world's things: which emoji the base learns, and which are kept out of it as concepts to personalize."""

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

VENDORS = ("google", "twitter")


@dataclass(frozen=True)
class Thing:
    """One emoji.

    Attributes:
        emoji: its short name in emoji-datasource.
        name: what captions call it.
        kind: a word for its group that captions use now and then ("face"), or "".
        class_word: for concepts alone, what the base calls things of its sort; "" for what the base learns.
    """

    emoji: str
    name: str
    kind: str
    class_word: str


@cache
def things() -> tuple[Thing, ...]:
    """What the base learns first, the concepts last; the order is the order of the identity network's outputs."""
    with (Path(__file__).parent / "catalogue.csv").open(encoding="utf-8", newline="") as file:
        rows = [Thing(**row) for row in csv.DictReader(file)]
    return tuple(sorted(rows, key=lambda thing: bool(thing.class_word)))


def learned() -> tuple[Thing, ...]:
    """What the base is trained on."""
    return tuple(thing for thing in things() if not thing.class_word)


def concepts() -> tuple[Thing, ...]:
    """What the base never sees."""
    return tuple(thing for thing in things() if thing.class_word)


def sprites(packages: Path) -> np.ndarray:
    """The emoji pictures, [things, vendors, 64, 64, 4] uint8 RGBA, from the unpacked npm packages."""
    table = json.loads((packages / VENDORS[0] / "package" / "emoji.json").read_text("utf-8"))
    files = {entry["short_name"]: entry["image"] for entry in table}
    pictures = [
        [_sprite(packages / vendor / "package" / "img" / vendor / "64" / files[thing.emoji]) for vendor in VENDORS]
        for thing in things()
    ]
    return np.array(pictures)


def _sprite(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS))
