"""Which pictures are drawn, and what they score: every concept after every stage of a bank's history.

After stage k the model is the sum of the first k concepts.  A concept's initial score is the one of the stage at which
it was learned, its final score the last stage's, its forgetting the difference (Appendix G).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..bank import Bank, Concept
from ..bank.names import slug
from ..bases import Base
from ..composition import compose
from ..errors import UserError
from ..generation import generate
from ..monitor import Monitor
from .metrics import Metric, score


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; the same for every concept, stage and method that is to be compared.

    Raises:
        UserError: the prompt has not one place, {}, for the concept's words.
    """

    prompt: str = "photo of a {}"
    count: int = 16
    seed: int = 0
    steps: int = 30
    guidance: float = 7.5
    size: int = 512

    def __post_init__(self) -> None:
        places = self.prompt.replace("{}", "", 1)
        if len(places) != len(self.prompt) - 2 or "{" in places or "}" in places:
            raise UserError(f"The prompt {self.prompt!r} needs {{}} once, where the concept's token and class word go.")


@dataclass(frozen=True)
class Score:
    """One metric of one concept after one stage."""

    stage: int
    concept: str
    metric: str
    value: float


class Evaluation:
    """Draws and scores; pictures that are in `folder` already are not drawn again.

    Args:
        references: the pictures that a concept should look like, by the concept's name.
    """

    def __init__(
        self,
        base: Base,
        bank: Bank,
        references: Mapping[str, Sequence[Image.Image]],
        metrics: Sequence[Metric],
        drawing: Drawing,
        folder: Path,
        monitor: Monitor,
    ) -> None:
        self.base, self.bank, self.references, self.metrics = base, bank, references, metrics
        self.drawing, self.folder, self.monitor = drawing, folder, monitor

    def run(self, trajectory: bool) -> list[Score]:
        """Initial and final scores of all concepts; with `trajectory` those of all stages between as well."""
        total = len(self.bank.concepts)
        scores = []
        for stage in range(1, total + 1):
            everyone = trajectory or stage == total
            seen = self.bank.concepts[:stage] if everyone else self.bank.concepts[stage - 1 : stage]
            self.monitor.message(f"After {stage} of {total} concepts: drawing {len(seen)}.")
            for concept in seen:
                scores += self._score(stage, concept)
        return scores

    def pictures(self, stage: int, concept: Concept) -> list[Image.Image]:
        """Of a concept, drawn from the sum of the first `stage` concepts."""
        parts = self.bank.concepts[:stage]
        folder = self.folder / "pictures" / slug(concept.name) / self._key(parts, concept)
        paths = [folder / f"{self.drawing.seed + number}.png" for number in range(self.drawing.count)]
        if not all(path.is_file() for path in paths):
            adapters = compose(self.bank, [(part.name, 1.0) for part in parts])
            _save_all(self._draw(adapters, self._prompt(concept)), paths)
        return [_read(path) for path in paths]

    def _score(self, stage: int, concept: Concept) -> list[Score]:
        pictures, references = self.pictures(stage, concept), self.references[concept.name]
        prompt = self.drawing.prompt.format(concept.class_word)
        return [
            Score(stage, concept.name, metric.name, score(metric, pictures, references, prompt))
            for metric in self.metrics
        ]

    def _prompt(self, concept: Concept) -> str:
        return self.drawing.prompt.format(concept.subject)

    def _key(self, parts: Sequence[Concept], concept: Concept) -> str:
        """All that decides what the pictures show."""
        facts = [self.base.identity.fingerprint, [part.sha256 for part in parts], self._prompt(concept)]
        facts += [self.drawing.steps, self.drawing.guidance, self.drawing.size]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _draw(self, adapters, prompt: str) -> list[Image.Image]:
        drawing = self.drawing
        return generate(
            self.base,
            prompt,
            adapters,
            seed=drawing.seed,
            steps=drawing.steps,
            size=drawing.size,
            guidance=drawing.guidance,
            count=drawing.count,
        )


def _save_all(pictures: Sequence[Image.Image], paths: Sequence[Path]) -> None:
    for picture, path in zip(pictures, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        picture.save(scratch, "PNG")
        scratch.replace(path)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
