"""One bank of the comparison: its training runs, and the scored sets of images that are sampled from it.

Everything is stored under the run's folder and made once: a concept when it is trained, an image's score when it is
measured.  A set of images is called a sheet: one model, and the concepts that are sampled from it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from seqlora_core.bank import Bank, Concept, ConceptSpec
from seqlora_core.bank.names import default_token, slug
from seqlora_core.composition.fusion import FUSIONS, fuse
from seqlora_core.composition.fusion.base_source import BaseSource
from seqlora_core.composition.selection import SelectedConcept
from seqlora_core.data.encoding import encode_concept
from seqlora_core.data.prompts import subject_prompt, template_prompts
from seqlora_core.data.reference_folder import Reference
from seqlora_core.evaluation.metrics import Identity, score
from seqlora_core.hashing import digest
from seqlora_core.mini import MiniConcept
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.base import Base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.model.sd15 import find_layers
from seqlora_core.monitor import Monitor
from seqlora_core.training.config import ResolvedConfig
from seqlora_core.training.trainer import RunOptions, train_concept

from .recipes import System
from .records import read_json, write_json

IMAGES, SAMPLER_STEPS, GUIDANCE = 16, 16, 4.0
STORED = 2  # images per concept and sheet that are stored to look at

Adapters = Mapping[str, Adapter]


class Run:
    """A bank that is trained with one configuration on concepts in one order; its folder is named after both.

    Args:
        out: folder of all runs.
        concepts: in the order of training; a run may be asked for the first few only, and for more later.
    """

    def __init__(
        self, base: Base, out: Path, config: ResolvedConfig, concepts: Sequence[MiniConcept], monitor: Monitor
    ) -> None:
        self.base, self.config, self.concepts, self.monitor = base, config, list(concepts), monitor
        self.folder = out / f"{config.method}-{config.seed}-{digest([config.as_dict(), self._order])[:10]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._loaded: dict[str, dict[str, Adapter]] = {}

    @property
    def bank(self) -> Bank:
        """The bank of its concepts."""
        return Bank.open_or_create(self.folder / "bank", self.base.identity, self.base.layers)

    def learn(self, count: int) -> list[Concept]:
        """Train what is missing of the first `count` concepts; return their records."""
        bank = self.bank
        if not bank.concepts:
            write_json(self.folder / "run.json", {"settings": self.config.as_dict(), "order": self._order})
        for number in range(len(bank.concepts), count):
            self._train(bank, self.concepts[number], f"{number + 1}/{count}")
        return list(bank.refresh().concepts[:count])

    def selected(self, concepts: Sequence[Concept], strength: float = 1.0) -> list[SelectedConcept]:
        """Select concepts of the bank for a composition; every file is read once."""
        missing = [concept for concept in concepts if concept.name not in self._loaded]
        self._loaded |= self.bank.load(missing) if missing else {}
        return [SelectedConcept(c.name, c.subject, self._loaded[c.name], strength) for c in concepts]

    def sheet(self, name: str, asked: Sequence[Concept], make: Callable[[], tuple[Adapters, dict]]) -> dict:
        """Score `asked` in images of one model.

        Args:
            make: returns the model's adapters and facts to store with its scores; called only if a score is missing.

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
                    images = sample_images(self.base, subject_prompt(concept.subject), self.config.seed)
                    self._store(name, concept.name, images)
                    record["scores"][concept.name] = score(Identity(), images, self.references(concept.name), "")
                    write_json(path, record)
            print(f"  {self.folder.name} {name}: {len(missing)} concepts sampled", flush=True)
        return record

    def cached(self, name: str, make: Callable[[], dict]) -> dict:
        """Return what `make` returns, called once and stored with the sheets."""
        path = self._sheet_path(name)
        found = read_json(path)
        if found is None:
            found = make()
            write_json(path, found)
        return found

    def references(self, name: str) -> tuple[Image.Image, ...]:
        """The reference images of a concept."""
        return next(concept.references for concept in self.concepts if concept.name == name)

    @property
    def _order(self) -> list[str]:
        return [concept.name for concept in self.concepts]

    def _train(self, bank: Bank, concept: MiniConcept, place: str) -> None:
        spec = ConceptSpec(concept.name, default_token(concept.name), concept.class_word)
        references = [Reference(image, template_prompts(spec.subject), concept.name) for image in concept.references]
        record = train_concept(
            self.base.denoiser(),
            lambda prompts, _: encode_concept(self.base, references, self.config.resolution, protected=prompts),
            bank,
            spec,
            self.config,
            self.monitor,
            RunOptions(resume=True),
        )
        print(f"  {self.folder.name} {place} {concept.name}: {record.metrics['seconds']:.0f} s", flush=True)

    def _store(self, sheet: str, concept: str, images: Sequence[Image.Image]) -> None:
        side = images[0].height
        strip = Image.new("RGB", (STORED * side, side))
        for number, image in enumerate(images[:STORED]):
            strip.paste(image, (number * side, 0))
        path = _stored_path(self.folder, sheet, concept)
        path.parent.mkdir(parents=True, exist_ok=True)
        strip.save(path, optimize=True)

    def _sheet_path(self, name: str) -> Path:
        return self.folder / "sheets" / f"{name}.json"


def stored_images(folder: Path, sheet: str, concept: str) -> list[Image.Image]:
    """Read the first images of a concept in a sheet of the run in `folder`; empty if it was not sampled."""
    path = _stored_path(folder, sheet, concept)
    if not path.is_file():
        return []
    with Image.open(path) as file:
        strip = file.convert("RGB")
    side = strip.height
    return [strip.crop((left, 0, left + side, side)) for left in range(0, strip.width, side)]


def _stored_path(folder: Path, sheet: str, concept: str) -> Path:
    return folder / "pictures" / sheet / f"{slug(concept)}.png"


def put_together(base: Base, system: System, selected: Sequence[SelectedConcept]) -> tuple[Adapters, dict]:
    """Make one update of several concepts; return it with what that cost."""
    fusion = FUSIONS[system.fusion]
    source = BaseSource(base, system.settings) if fusion.reads_base else None
    fused = fuse(fusion, selected, system.settings, source)
    return fused.adapters, {"fusion_seconds": fused.seconds, "fusion_megabytes": fused.peak_bytes / 2**20}


def sample_images(base: Base, prompt: str, seed: int) -> list[Image.Image]:
    """Sample the images of one prompt; a seed means the same noise in every run."""
    settings = SamplingSettings(SAMPLER_STEPS, base.native_size, GUIDANCE, seed * IMAGES, count=IMAGES)
    return generate(base, prompt, settings=settings)


@contextmanager
def folded(base: Base, adapters: Adapters) -> Iterator[None]:
    """Add adapters to the base's weights while the block lasts: for many passes cheaper than attaching them."""
    layers = find_layers(base.pipeline.unet)
    plain = {name: layers[name].weight.data for name in adapters}
    try:
        for name, adapter in adapters.items():
            layers[name].weight.data = torch.addmm(plain[name], adapter.up, adapter.down)
        yield
    finally:
        for name, weight in plain.items():
            layers[name].weight.data = weight
