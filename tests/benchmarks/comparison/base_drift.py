"""How much concepts change images that are not of them: of things the base knows and no training run protects."""

import random
from collections.abc import Sequence
from statistics import fmean

from PIL import Image

from seqlora_core.data.images import to_tensor
from seqlora_core.data.prompts import subject_prompt
from seqlora_core.mini.identity import identity_similarity
from seqlora_core.model.base import Base
from seqlora_core.training.protected_prompts import COMMON_SUBJECTS
from tests.mini.catalogue import learned

from .recipes import System
from .runs import Run, folded, put_together, sample_images

SIZES = (1, 4, 16)  # numbers of concepts that are put together, the first of a run
THINGS = 12


def unprotected_things() -> list[str]:
    """Names of things that the base has learned, none with a word of `COMMON_SUBJECTS`."""
    names = [thing.name for thing in learned() if not set(thing.name.split()) & set(COMMON_SUBJECTS)]
    return random.Random(0).sample(names, THINGS)


def measure_base_drift(system: System, run: Run, count: int) -> dict:
    """Compare images of unprotected things, with some concepts in place, to the base's own from the same noise.

    Returns:
        {"alike": {number of concepts: mean identity}, ...}; with none, the base's images among themselves.
    """
    concepts, names = run.learn(count), unprotected_things()

    def make() -> dict:
        own = _images(run.base, names, run.config.seed)
        alike = {"0": _alike(own, own)}
        for size in (size for size in SIZES if size <= count):
            adapters, _ = put_together(run.base, system, run.selected(concepts[:size], system.strength))
            with folded(run.base, adapters):
                alike[str(size)] = _alike(_images(run.base, names, run.config.seed), own)
        return {"system": system.name, "seed": run.config.seed, "alike": alike}

    return run.cached(f"base-drift/{system.composition}", make)


def _images(base: Base, names: Sequence[str], seed: int) -> list[list[Image.Image]]:
    return [sample_images(base, subject_prompt(name), seed) for name in names]


def _alike(images: Sequence[Sequence[Image.Image]], own: Sequence[Sequence[Image.Image]]) -> float:
    pairs = zip(images, own, strict=True)
    return fmean(identity_similarity(to_tensor(new), to_tensor(old)).mean().item() for new, old in pairs)
