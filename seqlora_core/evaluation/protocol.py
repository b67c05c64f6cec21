"""Which pictures are drawn, and what they score: every concept after every stage of a bank's history.

After stage k the model is the sum of the first k concepts.  A concept's initial score is the one of the stage at which
it was learned, its final score the last stage's, its forgetting the difference (Appendix G).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..bank import Bank, Concept
from ..bank.names import slug
from ..composition.concatenation import compose
from ..errors import UserError
from ..files import write_atomically
from ..hashing import digest, images_fingerprint
from ..model.base import Base
from ..model.sampling import generate
from ..monitor import Monitor
from .metrics import Metric, similarity, target

# Pictures: 16 of 512 px at once are more than the memory of most cards, and are lost together on Ctrl-C.
_AT_ONCE = 4


@dataclass(frozen=True)
class SamplingSettings:
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
    """Draws and scores; pictures and scores that are in `folder` already are not made again.

    Args:
        references: the pictures that a concept should look like, by the concept's name.
    """

    def __init__(
        self,
        base: Base,
        bank: Bank,
        references: Mapping[str, Sequence[Image.Image]],
        metrics: Sequence[Metric],
        drawing: SamplingSettings,
        folder: Path,
        monitor: Monitor,
    ) -> None:
        self.base, self.bank, self.references, self.metrics = base, bank, references, metrics
        self.drawing, self.folder, self.monitor = drawing, folder, monitor
        self._appearance = base.rendering_fingerprint()
        self._pixels = {name: images_fingerprint(pictures) for name, pictures in references.items()}
        self._targets: dict[tuple[str, str], Tensor] = {}

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
        parts, folder = self.bank.concepts[:stage], self._folder(stage, concept)
        first, count = self.drawing.seed, self.drawing.count
        paths = {seed: folder / f"{seed}.png" for seed in range(first, first + count)}
        missing = [seed for seed, path in paths.items() if not path.is_file()]
        if missing:
            adapters = compose(self.bank, [(part.name, 1.0) for part in parts])
            for seeds in _together(missing):
                for seed, picture in zip(seeds, self._draw(adapters, self._prompt(concept), seeds), strict=True):
                    _save(picture, paths[seed])
        return [_read(path) for path in paths.values()]

    def _score(self, stage: int, concept: Concept) -> list[Score]:
        pictures, file = self.pictures(stage, concept), self._folder(stage, concept) / "scores.json"
        kept = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        scores = []
        for metric in self.metrics:
            key = self._score_key(metric, concept)
            if key not in kept:
                kept[key] = similarity(metric, pictures, self._target(metric, concept))
                write_atomically(file, json.dumps(kept, indent=1).encode())
            scores.append(Score(stage, concept.name, metric.name, kept[key]))
        return scores

    def _target(self, metric: Metric, concept: Concept) -> Tensor:
        key = metric.name, concept.name
        if key not in self._targets:
            self._targets[key] = target(metric, self.references[concept.name], self._class_prompt(concept))
        return self._targets[key]

    def _prompt(self, concept: Concept) -> str:
        return self.drawing.prompt.format(concept.subject)

    def _class_prompt(self, concept: Concept) -> str:
        """For metrics of text, which know no token."""
        return self.drawing.prompt.format(concept.class_word)

    def _folder(self, stage: int, concept: Concept) -> Path:
        """Named by all that decides what the pictures show."""
        drawing, prompt = self.drawing, self._prompt(concept)
        facts = [self._appearance, [part.sha256 for part in self.bank.concepts[:stage]], prompt]
        facts += [drawing.steps, drawing.guidance, drawing.size]
        return self.folder / "pictures" / slug(concept.name) / digest(facts)[:16]

    def _score_key(self, metric: Metric, concept: Concept) -> str:
        """All that decides a score of given pictures."""
        compared = self._class_prompt(concept) if metric.to_text else self._pixels[concept.name]
        facts = [metric.weights, compared, self.drawing.seed, self.drawing.count]
        return f"{metric.name} {digest(facts)[:16]}"

    def _draw(self, adapters, prompt: str, seeds: Sequence[int]) -> list[Image.Image]:
        drawing = self.drawing
        return generate(
            self.base,
            prompt,
            adapters,
            seed=seeds[0],
            steps=drawing.steps,
            size=drawing.size,
            guidance=drawing.guidance,
            count=len(seeds),
        )


def _together(seeds: Sequence[int]) -> list[list[int]]:
    """Neighbours, as many as are drawn at a time."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and groups[-1][-1] == seed - 1 and len(groups[-1]) < _AT_ONCE:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    picture.save(scratch, "PNG")
    scratch.replace(path)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
