"""Banks of the comparison: words, training runs, and scores, each made once and kept in a folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqlora_core.bank import Bank, Concept, ConceptSpec
from seqlora_core.bank.names import default_token, slug
from seqlora_core.composition.selection import SelectedConcept, select
from seqlora_core.data.encoding import encode_concept
from seqlora_core.data.images import to_tensor
from seqlora_core.data.prompts import subject_prompt, template_prompts
from seqlora_core.data.reference_folder import Reference
from seqlora_core.errors import UserError
from seqlora_core.mini import MiniConcept, mini_concepts
from seqlora_core.mini.identity import identity_similarity
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.base import Base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.model.sd15 import find_layers
from seqlora_core.training.config import ResolvedConfig, TrainingConfig
from seqlora_core.training.methods import METHODS, resolve
from seqlora_core.training.run_options import RunOptions
from seqlora_core.training.token_embedding import WordTraining
from seqlora_core.training.trainer import train_concept

from .recipes import RESOLUTION, SETTINGS, WORD_PASSES, Recipe

IMAGES, SAMPLER_STEPS, GUIDANCE = 8, 16, 4.0
OF_TABLE = 32  # step sizes are chosen on the concepts beyond; the row of 48 has them all

Adapters = Mapping[str, Adapter]


class Workshop:
    """The base, the concepts, and the folder that everything is kept in."""

    def __init__(self, base: Base, out: Path) -> None:
        self.base, self.out, self.concepts = base, out, mini_concepts()

    @property
    def tuning_concepts(self) -> list[MiniConcept]:
        """Those that step sizes are chosen on, every fourth first: they are in groups that look alike."""
        rest = self.concepts[OF_TABLE:]
        return [concept for start in range(4) for concept in rest[start::4]]

    def word(self, concept: MiniConcept, seed: int) -> Tensor:
        """The vectors [k, w] of a concept's word, the same for all recipes, since it is learned on the bare base."""
        path = self.out / "words" / str(seed) / f"{slug(concept.name)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # processes share the folder
            if not path.is_file():
                save_file({"vectors": self._learn_word(concept, seed)}, path)
            return load_file(path)["vectors"]

    def _learn_word(self, concept: MiniConcept, seed: int) -> Tensor:
        config = resolve(TrainingConfig(**SETTINGS, seed=seed, layers="cross-kv"), RESOLUTION, "float32")
        data = encode_concept(self.base, _references(concept), RESOLUTION, protected=(), words={})
        encoder = self.base.text_encoder
        training = WordTraining(self.base.denoiser(), encoder, data, _spec(concept), config, {})
        with encoder.loaded():
            for _ in range(WORD_PASSES):
                training.step()
        return training.state.vectors.contiguous()


class Run:
    """A bank that is trained with one recipe, on one list of concepts in order.

    Args:
        name: of its folder.
    """

    def __init__(
        self, shop: Workshop, name: str, recipe: Recipe, config: ResolvedConfig, concepts: Sequence[MiniConcept]
    ) -> None:
        self.shop, self.base, self.recipe, self.config = shop, shop.base, recipe, config
        self.concepts, self.folder = list(concepts), shop.out / "runs" / name
        self._check_same()
        self._parts: dict[str, SelectedConcept] = {}

    @property
    def bank(self) -> Bank:
        return Bank.open_or_create(self.folder / "bank", self.base.identity, self.base.layers)

    def learn(self, count: int) -> list[Concept]:
        """Train what is missing of the first `count` concepts; return their records."""
        bank = self.bank
        for concept in self.concepts[len(bank.concepts) : count]:
            with _constrained(self.config.method, self.recipe.constrained):
                self._train(bank, concept)
            print(f"  {self.folder.name} {len(bank.concepts)}/{count}", flush=True)
        return list(bank.refresh().concepts[:count])

    def parts(self, concepts: Sequence[Concept], strength: float = 1.0) -> list[SelectedConcept]:
        """Load concepts for a composition; every file is read once."""
        missing = [(concept.name, 1.0) for concept in concepts if concept.name not in self._parts]
        if missing:
            self._parts |= {part.name: part for part in select(self.bank, missing)}
        return [replace(self._parts[concept.name], strength=strength) for concept in concepts]

    def scores(
        self, sheet: str, asked: Sequence[Concept], draw: Callable[[], Callable[[str], list[Image.Image]]]
    ) -> dict[str, float]:
        """The mean identity of each of `asked` in images of "photo of a ...".

        Args:
            draw: makes the function that draws the images of a prompt; called if a score is missing.
        """
        found = dict(self._load(sheet) or {})
        missing = [concept for concept in asked if concept.name not in found]
        if missing:
            drawn = draw()
            for concept in missing:
                images = drawn(subject_prompt(concept.subject))
                save_image(images[0], self.picture(sheet, concept))
                found[concept.name] = self.identity(concept, to_tensor(images))
                self._keep(sheet, found)
        return {concept.name: found[concept.name] for concept in asked}

    def picture(self, sheet: str, concept: Concept) -> Path:
        """Where the first image of a concept in a sheet is kept, to be looked at."""
        return self.folder / "pictures" / sheet / f"{slug(concept.name)}.png"

    def kept(self, sheet: str, make: Callable[[], object]) -> object:
        """What `make` returns, called once."""
        found = self._load(sheet)
        if found is None:
            found = make()
            self._keep(sheet, found)
        return found

    def identity(self, concept: Concept, pixels: Tensor) -> float:
        """The mean identity of a concept in images [N, 3, 32, 32]."""
        references = next(own.references for own in self.concepts if own.name == concept.name)
        return round(identity_similarity(pixels, to_tensor(references)).mean().item(), 4)

    def draw(self, prompt: str) -> list[Image.Image]:
        """Images of the model as it is; the same noise in every run of a seed."""
        settings = self.sampling
        return generate(self.base, prompt, settings=settings, words=self.bank.words())

    @property
    def sampling(self) -> SamplingSettings:
        return SamplingSettings(SAMPLER_STEPS, self.base.native_size, GUIDANCE, self.config.seed * IMAGES, count=IMAGES)

    def drawing_with(self, adapters: Adapters) -> Callable[[str], list[Image.Image]]:
        """Draws with these adapters in the weights."""

        def drawn(prompt: str) -> list[Image.Image]:
            with folded(self.base, adapters):
                return self.draw(prompt)

        return drawn

    def _train(self, bank: Bank, concept: MiniConcept) -> None:
        references = _references(concept)
        word = None if self.config.token_share else self.shop.word(concept, self.config.seed)
        train_concept(
            self.base.denoiser(),
            lambda protected, words: encode_concept(
                self.base, references, self.config.resolution, protected=protected, words=words
            ),
            bank,
            _spec(concept),
            self.config,
            options=RunOptions(first_word=word),
            text_encoder=self.base.text_encoder,
        )

    def _check_same(self) -> None:
        path = self.folder / "run.json"
        facts = {"constrained": self.recipe.constrained, "base": self.base.identity.fingerprint}
        facts["order"] = [concept.name for concept in self.concepts]
        found = read_json(path)
        if found is None:
            write_json(path, {**facts, "settings": self.config.as_dict()})
        elif ResolvedConfig.from_dict(found.pop("settings")) != self.config or found != facts:
            raise UserError(f"{path} belongs to another experiment: give another folder.")

    def _path(self, sheet: str) -> Path:
        return self.folder / "sheets" / f"{sheet}.json"

    def _load(self, sheet: str) -> object | None:
        return read_json(self._path(sheet))

    def _keep(self, sheet: str, value: object) -> None:
        write_json(self._path(sheet), value)


def _spec(concept: MiniConcept) -> ConceptSpec:
    return ConceptSpec(concept.name, default_token(concept.name), concept.class_word)


def _references(concept: MiniConcept) -> list[Reference]:
    prompts = template_prompts(default_token(concept.name))
    return [Reference(image, prompts, concept.name) for image in concept.references]


@contextmanager
def _constrained(method: str, constrained: bool) -> Iterator[None]:
    """While the block lasts, a method has eq. 4 or not."""
    usual = METHODS[method]
    METHODS[method] = replace(usual, constrained=usual.constrained and constrained)
    try:
        yield
    finally:
        METHODS[method] = usual


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


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


def read_json(path: Path) -> object | None:
    """The content of a file, or None where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def write_json(path: Path, value: object) -> None:
    """Write in one step, so that a process that is stopped leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", "utf-8")
    partial.replace(path)
