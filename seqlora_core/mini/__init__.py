"""The mini world: a small Stable Diffusion that fits into the package, its concepts, and a metric of identity.

How it was made is in `NOTICE.md`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import UserError

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"
NAME = "mini 2"  # in banks; those of the first weights say "mini"


def base_folder() -> Path:
    """The mini base as a diffusers folder.

    Raises:
        UserError: it has not been made.
    """
    if not BASE.is_dir():
        raise UserError(
            "The mini base is not part of this copy: `python -m tests.mini.make --help` says how to make it."
        )
    return BASE


@dataclass(frozen=True)
class MiniConcept:
    """Something that the mini base has never seen, with five reference images of 32 px."""

    name: str
    class_word: str
    references: tuple[Image.Image, ...]


def mini_concepts() -> list[MiniConcept]:
    """All 48 concepts, those that look alike next to each other."""
    record = json.loads((FOLDER / "concepts.json").read_text("utf-8"))
    return [
        MiniConcept(entry["name"], entry["class_word"], _strip(FOLDER / "concepts" / entry["file"], record["size"]))
        for entry in record["concepts"]
    ]


def _strip(path: Path, size: int) -> tuple[Image.Image, ...]:
    with Image.open(path) as strip:
        row = strip.convert("RGB")
    return tuple(row.crop((left, 0, left + size, size)) for left in range(0, row.width, size))
