"""What concepts do to pictures that are not of them: things that the base knows, and no training was told to keep."""

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
from .runs import Run, draw, folded, put_together

SIZES = (1, 4, 16)  # the first concepts of a run, put together
THINGS = 12


def ordinary_things() -> list[str]:
    """Names of things that the base has learned, none with a word that trainings keep (see `plan.COMMON_SUBJECTS`)."""
    names = [thing.name for thing in learned() if not set(thing.name.split()) & set(COMMON_SUBJECTS)]
    return random.Random(0).sample(names, THINGS)


def measure_others(system: System, run: Run, count: int) -> dict:
    """Mean identity of pictures of ordinary things with the base's own of the same noise, beside the first concepts."""
    concepts, names = run.learn(count), ordinary_things()

    def make() -> dict:
        own = _pictures(run.base, names, run.config.seed)
        alike = {"0": _alike(own, own)}
        for size in (size for size in SIZES if size <= count):
            adapters, _ = put_together(run.base, system, run.parts(concepts[:size], system.strength))
            with folded(run.base, adapters):
                alike[str(size)] = _alike(_pictures(run.base, names, run.config.seed), own)
        return {"system": system.name, "seed": run.config.seed, "alike": alike}

    return run.kept(f"others/{system.composition}", make)


def _pictures(base: Base, names: Sequence[str], seed: int) -> list[list[Image.Image]]:
    return [draw(base, subject_prompt(name), seed) for name in names]


def _alike(pictures: Sequence[Sequence[Image.Image]], own: Sequence[Sequence[Image.Image]]) -> float:
    pairs = zip(pictures, own, strict=True)
    return fmean(identity_similarity(to_tensor(new), to_tensor(old)).mean().item() for new, old in pairs)
