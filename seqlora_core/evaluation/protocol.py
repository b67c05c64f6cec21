"""Sample and score every concept after the stages of a bank's history.

After stage k the model is the sum of the first k concepts.  A concept's initial score is that of the stage at which it
was learned, its final score that of the last stage, and its forgetting is the difference (Appendix G).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

from PIL import Image
from torch import Tensor

from ..bank import Bank, Concept
from ..bank.names import slug
from ..composition.concatenation import compose
from ..composition.confined_sampling import confine_on, generate_confined
from ..composition.selection import select
from ..data.prompts import SUBJECT_TEMPLATE
from ..errors import UserError
from ..files import write_atomically
from ..hashing import digest, images_fingerprint
from ..model.base import Base
from ..model.sampling import SamplingSettings, generate
from ..monitor import Monitor
from .metrics import Metric, similarity, target

# Images per batch: 16 of 512 px exceed the memory of most cards, and an interruption loses a whole batch.
_BATCH_SIZE = 4
Sampler = Callable[[SamplingSettings], list[Image.Image]]


@dataclass(frozen=True)
class EvaluationSettings:
    """What is sampled of each concept; the same for all concepts, stages and methods that are to be compared.

    Attributes:
        prompt: a template with {} in the place of the concept's token and class word.
        sampling: how the images are sampled; `count` is the number of images per concept, stage and prompt.
        own_words: whether each concept acts only on its own word (see `composition.own_words`).

    Raises:
        UserError: the prompt does not contain {} exactly once.
    """

    prompt: str = SUBJECT_TEMPLATE
    sampling: SamplingSettings = field(default_factory=lambda: SamplingSettings(count=16))
    own_words: bool = False

    def __post_init__(self) -> None:
        rest = self.prompt.replace("{}", "", 1)
        if len(rest) != len(self.prompt) - 2 or "{" in rest or "}" in rest:
            raise UserError(f"The prompt {self.prompt!r} needs {{}} once, where the concept's token and class word go.")


@dataclass(frozen=True)
class Score:
    """The score of one concept after one stage, under one metric."""

    stage: int
    concept: str
    metric: str
    value: float


class Evaluation:
    """Samples and scores the concepts of a bank, reusing the images and scores that `folder` already holds.

    Args:
        references: the images that each concept should look like, by the concept's name.
        folder: receives images, scores and the report.
        prompts: templates by the concept's name, whose scores are averaged; without any, that of the settings.
    """

    def __init__(
        self,
        base: Base,
        bank: Bank,
        references: Mapping[str, Sequence[Image.Image]],
        metrics: Sequence[Metric],
        settings: EvaluationSettings,
        folder: Path,
        monitor: Monitor,
        prompts: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.base, self.bank, self.references, self.metrics = base, bank, references, metrics
        self.settings, self.folder, self.monitor, self.prompts = settings, folder, monitor, prompts
        self._rendering = base.rendering_fingerprint()
        self._reference_hashes = {name: images_fingerprint(images) for name, images in references.items()}
        self._words = bank.words()
        self._targets: dict[tuple[str, ...], Tensor | str] = {}

    def run(self, trajectory: bool) -> list[Score]:
        """Score all concepts when learned and at the end; with `trajectory` also after all stages in between."""
        total = len(self.bank.concepts)
        scores = []
        for stage in range(1, total + 1):
            score_all = trajectory or stage == total
            concepts = self.bank.concepts[:stage] if score_all else self.bank.concepts[stage - 1 : stage]
            self.monitor.message(f"Stage {stage} of {total}: sampling {len(concepts)} concepts.")
            for concept in concepts:
                scores += self._score(stage, concept)
        return scores

    def images(self, stage: int, concept: Concept) -> list[Image.Image]:
        """Return the images of a concept from the sum of the first `stage` concepts; sample those that are missing.

        They are those of the concept's first prompt.
        """
        return self._images(stage, concept, self._templates(concept)[0])

    def _images(self, stage: int, concept: Concept, template: str) -> list[Image.Image]:
        learned, folder = self.bank.concepts[:stage], self._folder(stage, concept, template)
        first, count = self.settings.sampling.seed, self.settings.sampling.count
        paths = {seed: folder / f"{seed}.png" for seed in range(first, first + count)}
        missing = [seed for seed, path in paths.items() if not path.is_file()]
        if missing:
            sample = self._sampler([(other.name, 1.0) for other in learned], template.format(concept.subject))
            for seeds in _batches(missing):
                for seed, image in zip(seeds, sample(self._batch(seeds)), strict=True):
                    _save(image, paths[seed])
        return [_read(path) for path in paths.values()]

    def _score(self, stage: int, concept: Concept) -> list[Score]:
        values: dict[str, list[float]] = {metric.name: [] for metric in self.metrics}
        for template in self._templates(concept):
            for name, value in self._score_prompt(stage, concept, template).items():
                values[name].append(value)
        return [Score(stage, concept.name, name, fmean(of_prompts)) for name, of_prompts in values.items()]

    def _score_prompt(self, stage: int, concept: Concept, template: str) -> dict[str, float]:
        images = self._images(stage, concept, template)
        file = self._folder(stage, concept, template) / "scores.json"
        stored = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        scores = {}
        for metric in self.metrics:
            key = self._score_key(metric, concept, template)
            if key not in stored:
                stored[key] = similarity(metric, images, self._target(metric, concept, template))
                write_atomically(file, json.dumps(stored, indent=1).encode())
            scores[metric.name] = stored[key]
        return scores

    def _target(self, metric: Metric, concept: Concept, template: str) -> Tensor | str:
        key = (metric.name, concept.name, template) if metric.to_text else (metric.name, concept.name)
        if key not in self._targets:
            prompt = template.format(concept.class_word)  # metrics of text do not know the concept's own word
            self._targets[key] = target(metric, self.references[concept.name], prompt)
        return self._targets[key]

    def _templates(self, concept: Concept) -> Sequence[str]:
        return self.prompts.get(concept.name) or [self.settings.prompt]

    def _folder(self, stage: int, concept: Concept, template: str) -> Path:
        """The folder of a concept's images, named by everything that decides them."""
        sampling, prompt = self.settings.sampling, template.format(concept.subject)
        checksums = [learned.sha256 for learned in self.bank.concepts[:stage]]
        checksums += [concept.embedding_sha256] if concept.embedding else []
        facts = [self._rendering, checksums, prompt, sampling.steps, sampling.guidance, sampling.size]
        facts += [sampling.negative_prompt] if sampling.negative_prompt else []
        facts += ["own words"] if self.settings.own_words else []
        return self.folder / "pictures" / slug(concept.name) / digest(facts)[:16]

    def _score_key(self, metric: Metric, concept: Concept, template: str) -> str:
        """The name of a score of given images: everything that decides it."""
        text = template.format(concept.class_word)
        compared = text if metric.to_text else self._reference_hashes[concept.name]
        facts = [metric.weights, compared, self.settings.sampling.seed, self.settings.sampling.count]
        return f"{metric.name} {digest(facts)[:16]}"

    def _batch(self, seeds: Sequence[int]) -> SamplingSettings:
        return replace(self.settings.sampling, seed=seeds[0], count=len(seeds))

    def _sampler(self, selection: Sequence[tuple[str, float]], prompt: str) -> Sampler:
        """Compose concepts, once for all batches of a prompt."""
        if not self.settings.own_words:
            adapters = compose(self.bank, selection)
            return lambda batch: generate(self.base, prompt, adapters, batch, self._words)
        parts = select(self.bank, selection)
        confinement = confine_on(self.base, prompt, parts, self.settings.sampling, self._words)
        return lambda batch: generate_confined(self.base, confinement, batch, self._words)


def _batches(seeds: Sequence[int]) -> list[list[int]]:
    """Group consecutive seeds into batches of at most `_BATCH_SIZE`."""
    groups: list[list[int]] = []
    for seed in seeds:
        if groups and groups[-1][-1] == seed - 1 and len(groups[-1]) < _BATCH_SIZE:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    image.save(scratch, "PNG")
    scratch.replace(path)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
