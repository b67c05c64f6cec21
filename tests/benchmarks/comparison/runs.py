"""One bank of the comparison: its trainings, and the scored sets of pictures that are drawn from it.

All that is made is kept under the run's folder and never made twice: a concept once trained, a picture's score once
measured.  Sets of pictures are called sheets; a sheet is one model and the concepts that are drawn from it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from seqlora_core.bank import Bank, Concept
from seqlora_core.bank.names import default_token, slug
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.composition.fusion import FUSIONS, fuse
from seqlora_core.composition.fusion.base_source import BaseSource
from seqlora_core.composition.selection import SelectedConcept
from seqlora_core.data.encoding import encode_concept
from seqlora_core.data.images import Reference
from seqlora_core.data.prompts import subject_prompt, template_prompts
from seqlora_core.evaluation.metrics import Identity, score
from seqlora_core.files import write_atomically
from seqlora_core.mini import MiniConcept
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.base import Base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.model.sd15 import find_layers
from seqlora_core.monitor import Monitor
from seqlora_core.training.config import TrainingConfig
from seqlora_core.training.methods import METHODS
from seqlora_core.training.protected_prompts import protected_prompts
from seqlora_core.training.trainer import RunOptions, train_concept

from .recipes import System

PICTURES, SAMPLER_STEPS, GUIDANCE = 16, 16, 4.0
_OF_METHOD = ("base", "init", "coordinates", "crosstalk", "ridge", "average")
KEPT = 2  # pictures of each concept and sheet that are kept to look at

Adapters = Mapping[str, Adapter]


class Run:
    """A bank that is trained with one configuration on concepts in one order.

    Args:
        out: folder of all runs.
        concepts: in the order of training; a run may be asked for the first few only, and for more later.
    """

    def __init__(
        self, base: Base, out: Path, config: TrainingConfig, concepts: Sequence[MiniConcept], monitor: Monitor
    ) -> None:
        self.base, self.config, self.concepts, self.monitor = base, config, list(concepts), monitor
        facts = json.dumps([config.as_dict(), self.own_settings, [concept.name for concept in concepts]])
        self.folder = out / f"{config.method}-{config.seed}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._loaded: dict[str, dict[str, Adapter]] = {}

    @property
    def own_settings(self) -> dict:
        """What the method does where the configuration leaves it open: a changed default is another run."""
        return {name: getattr(METHODS[self.config.method], name) for name in _OF_METHOD}

    @property
    def bank(self) -> Bank:
        """Where its concepts are kept."""
        return Bank.open_or_create(self.folder / "bank", self.base.identity, self.base.layers)

    def learn(self, count: int) -> list[Concept]:
        """Trains what is missing of the first `count` concepts; returns their records."""
        bank = self.bank
        if not bank.concepts:
            facts = {
                "config": self.config.as_dict(),
                "method": self.own_settings,
                "order": [concept.name for concept in self.concepts],
            }
            write_json(self.folder / "run.json", facts)
        for number in range(len(bank.concepts), count):
            self._train(bank, self.concepts[number], f"{number + 1}/{count}")
        return list(bank.refresh().concepts[:count])

    def parts(self, concepts: Sequence[Concept], strength: float = 1.0) -> list[SelectedConcept]:
        """Concepts of the bank to be put together; every file is read once."""
        missing = [concept for concept in concepts if concept.name not in self._loaded]
        self._loaded |= self.bank.load(missing) if missing else {}
        return [SelectedConcept(c.name, c.subject, self._loaded[c.name], strength) for c in concepts]

    def sheet(self, name: str, asked: Sequence[Concept], make: Callable[[], tuple[Adapters, dict]]) -> dict:
        """The scores of `asked` in pictures of one model.

        Args:
            make: the model's adapters and what is to be kept beside its scores; called only if a score is missing.

        Returns:
            {"scores": {concept: identity}, ...}
        """
        path = self._sheet_path(name)
        record = read_json(path) or {"scores": {}}
        missing = [concept for concept in asked if concept.name not in record["scores"]]
        if missing:
            adapters, facts = make()
            record = {**facts, **record}
            with folded(self.base, adapters):
                for concept in missing:
                    pictures = draw(self.base, subject_prompt(concept.subject), self.config.seed)
                    self._keep(name, concept.name, pictures)
                    record["scores"][concept.name] = score(Identity(), pictures, self.references(concept.name), "")
                    write_json(path, record)
            print(f"  {self.folder.name} {name}: {len(missing)} drawn", flush=True)
        return record

    def kept(self, name: str, make: Callable[[], dict]) -> dict:
        """What `make` gives, made once and kept beside the sheets."""
        path = self._sheet_path(name)
        found = read_json(path)
        if found is None:
            found = make()
            write_json(path, found)
        return found

    def references(self, name: str) -> tuple[Image.Image, ...]:
        """What a concept should look like."""
        return next(concept.references for concept in self.concepts if concept.name == name)

    def _train(self, bank: Bank, concept: MiniConcept, place: str) -> None:
        spec = ConceptSpec(concept.name, default_token(concept.name), concept.class_word)
        references = [Reference(p, template_prompts(spec.subject), concept.name) for p in concept.references]
        prompts = protected_prompts(bank.concepts, spec.class_word)
        data = encode_concept(self.base, references, self.config.resolution, protected=prompts)
        options = RunOptions(resume=True)
        record = train_concept(self.base.denoiser(), data, bank, spec, self.config, self.monitor, options)
        print(f"  {self.folder.name} {place} {concept.name}: {record.metrics['seconds']:.0f} s", flush=True)

    def _keep(self, sheet: str, concept: str, pictures: Sequence[Image.Image]) -> None:
        side = pictures[0].height
        strip = Image.new("RGB", (KEPT * side, side))
        for number, picture in enumerate(pictures[:KEPT]):
            strip.paste(picture, (number * side, 0))
        path = _kept_path(self.folder, sheet, concept)
        path.parent.mkdir(parents=True, exist_ok=True)
        strip.save(path, optimize=True)

    def _sheet_path(self, name: str) -> Path:
        return self.folder / "sheets" / f"{name}.json"


def kept_pictures(folder: Path, sheet: str, concept: str) -> list[Image.Image]:
    """The first pictures of a concept in a sheet of the run in `folder`; none where it was not drawn."""
    path = _kept_path(folder, sheet, concept)
    if not path.is_file():
        return []
    with Image.open(path) as strip:
        picture = strip.convert("RGB")
    side = picture.height
    return [picture.crop((left, 0, left + side, side)) for left in range(0, picture.width, side)]


def _kept_path(folder: Path, sheet: str, concept: str) -> Path:
    return folder / "pictures" / sheet / f"{slug(concept)}.png"


def put_together(base: Base, system: System, parts: Sequence[SelectedConcept]) -> tuple[Adapters, dict]:
    """One update out of several concepts, and what that cost."""
    fusion = FUSIONS[system.fusion]
    source = BaseSource(base, system.settings) if fusion.reads_base else None
    fused = fuse(fusion, parts, system.settings, source)
    return fused.adapters, {"fusion_seconds": fused.seconds, "fusion_megabytes": fused.peak_bytes / 2**20}


def draw(base: Base, prompt: str, seed: int) -> list[Image.Image]:
    """The pictures of one prompt; a seed stands for the same noise in every run."""
    settings = SamplingSettings(SAMPLER_STEPS, base.native_size, GUIDANCE, seed * PICTURES, count=PICTURES)
    return generate(base, prompt, settings=settings)


@contextmanager
def folded(base: Base, adapters: Adapters) -> Iterator[None]:
    """The base with adapters added to its weights while the block lasts: cheaper than beside them for many passes."""
    layers = find_layers(base.pipeline.unet)
    plain = {name: layers[name].weight.data for name in adapters}
    try:
        for name, (A, B) in ((name, adapter.factors) for name, adapter in adapters.items()):
            layers[name].weight.data = torch.addmm(plain[name], A, B.mT)
        yield
    finally:
        for name, weight in plain.items():
            layers[name].weight.data = weight


def read_json(path: Path) -> dict | None:
    """What `write_json` wrote, if it has."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def write_json(path: Path, document: dict) -> None:
    """At one instant, so that an interruption never leaves half a file."""
    write_atomically(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
