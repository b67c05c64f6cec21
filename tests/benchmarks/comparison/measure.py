"""The scores of a system: in the end, right after training, alone, in selections, in pairs, and of other things."""

import random
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from PIL import Image

from seqlora_core.bank import Concept
from seqlora_core.bank.names import slug
from seqlora_core.composition.confined_sampling import confine_on, generate_confined
from seqlora_core.composition.fusion import FUSIONS, fuse
from seqlora_core.composition.fusion.base_source import BaseSource
from seqlora_core.data.images import to_tensor
from seqlora_core.data.prompts import subject_prompt
from seqlora_core.hashing import digest
from seqlora_core.mini.identity import identity_similarity, load_identity
from seqlora_core.model.adapters import sum_adapters
from seqlora_core.training.protected_prompts import COMMON_SUBJECTS
from tests.mini.catalogue import learned as known_things
from tests.mini.identity import halves

from .recipes import System
from .runs import Run

SELECTIONS, SELECTED = 6, (2, 4, 8)  # how many of each size
# Places in the order of training; of the pairs, the first six look alike.
ALIKE = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (12, 13))
OTHERS = ((0, 8), (1, 15), (2, 6), (3, 11), (5, 14), (7, 10))
THINGS, LOADED = 12, (1, 4, 16)

Draw = Callable[[str], list[Image.Image]]


def drawing(system: System, run: Run, concepts: Sequence[Concept]) -> Draw:
    """The function that draws a prompt's images with these concepts put together."""
    if system.merge == "words alone":
        return run.draw
    parts = run.parts(concepts, system.strength)
    if system.merge == "own words":
        words = run.bank.words()
        return lambda prompt: generate_confined(
            run.base, confine_on(run.base, prompt, parts, run.sampling, words), run.sampling, words
        )
    if system.merge == "sum":
        return run.drawing_with(sum_adapters([(part.adapters, part.strength) for part in parts]))
    fusion = FUSIONS[system.merge]
    fused = fuse(fusion, parts, system.settings, BaseSource(run.base, system.settings) if fusion.reads_base else None)
    cost = {"seconds": round(fused.seconds, 2), "megabytes": round(fused.peak_bytes / 2**20, 1)}
    run.kept(_costs(system, concepts), lambda: cost)
    return run.drawing_with(fused.adapters)


def costs(system: System, run: Run, concepts: Sequence[Concept]) -> dict[str, float]:
    """Seconds and megabytes of putting these concepts together, once that was done; empty for sums."""
    return run.kept(_costs(system, concepts), dict) if system.merge in FUSIONS and system.merge != "sum" else {}


def _costs(system: System, concepts: Sequence[Concept]) -> str:
    return f"costs/{_name(system)}/{len(concepts)}"


def final(system: System, run: Run, concepts: Sequence[Concept]) -> dict[str, float]:
    """Each concept, with all of these put together."""
    if system.merge == "switching":
        return alone(run, concepts)
    return run.scores(final_sheet(system, concepts), concepts, lambda: drawing(system, run, concepts))


def final_sheet(system: System, concepts: Sequence[Concept]) -> str:
    """The name of the scores of `final`."""
    names = digest([concept.name for concept in concepts])[:8]
    return f"final/{_name(system)}/{len(concepts)}-{names}"


def alone(run: Run, concepts: Sequence[Concept]) -> dict[str, float]:
    """Each concept, with no other one in place."""
    system = System("", run.recipe)
    scores = {}
    for concept in concepts:
        scores |= run.scores(f"alone/{slug(concept.name)}", [concept], lambda c=concept: drawing(system, run, [c]))
    return scores


def after(run: Run, concepts: Sequence[Concept]) -> dict[str, float]:
    """Each concept in the sum up to it."""
    system, scores = System("", run.recipe), {}
    for count, concept in enumerate(concepts, start=1):
        so_far = concepts[:count]
        sheet = f"after/{count:02d}"
        scores |= run.scores(sheet, [concept], lambda so_far=so_far: drawing(system, run, so_far))
    return scores


def selections(system: System, run: Run, concepts: Sequence[Concept]) -> dict[str, list[float]]:
    """The mean score of each of some random selections, by their size."""
    return {
        str(size): [fmean(final(system, run, chosen).values()) for chosen in _selections(concepts, size)]
        for size in SELECTED
    }


def _selections(concepts: Sequence[Concept], size: int) -> list[list[Concept]]:
    rng = random.Random(size)
    return [[concepts[place] for place in sorted(rng.sample(range(len(concepts)), size))] for _ in range(SELECTIONS)]


def pairs(system: System, run: Run, concepts: Sequence[Concept], all_loaded: bool) -> dict[str, list[float]]:
    """Both things of "a X left of a Y", each by its half: the mean of a pair's two scores.

    Args:
        all_loaded: put all concepts together, not the two of the prompt.
    """

    def measure() -> dict[str, list[float]]:
        draw = drawing(system, run, concepts) if all_loaded else None
        return {
            kind: [_pair(run, pair, draw or drawing(system, run, pair)) for pair in _chosen(concepts, places)]
            for kind, places in (("look-alikes", ALIKE), ("others", OTHERS))
        }

    return run.kept(f"pairs/{_name(system)}/{len(concepts) if all_loaded else 2}", measure)


def _chosen(concepts: Sequence[Concept], places: Sequence[tuple[int, int]]) -> list[list[Concept]]:
    return [[concepts[place] for place in pair] for pair in places]


@torch.no_grad()
def _pair(run: Run, pair: Sequence[Concept], draw: Draw) -> float:
    left, right = pair
    sides = halves(to_tensor(draw(f"a {left.subject} left of a {right.subject}")), "left of")
    return round(fmean(run.identity(concept, side) for concept, side in zip(pair, sides, strict=True)), 4)


def drift(system: System, run: Run, concepts: Sequence[Concept]) -> dict[str, float]:
    """How alike images of other things are to the base's own from the same noise, by the number of concepts loaded."""

    def measure() -> dict[str, float]:
        own = {name: to_tensor(run.draw(subject_prompt(name))) for name in unprotected_things()}
        load_identity()
        return {str(count): _alike(drawing(system, run, concepts[:count]), own) for count in LOADED}

    return run.kept(f"drift/{_name(system)}", measure)


def unprotected_things() -> list[str]:
    """Names of things that the base has learned, none with a word of `COMMON_SUBJECTS`."""
    names = [thing.name for thing in known_things() if not set(thing.name.split()) & set(COMMON_SUBJECTS)]
    return random.Random(0).sample(names, THINGS)


def _alike(draw: Draw, own: dict[str, torch.Tensor]) -> float:
    similarities = [
        identity_similarity(to_tensor(draw(subject_prompt(name))), images).mean().item() for name, images in own.items()
    ]
    return round(fmean(similarities), 4)


def _name(system: System) -> str:
    """A system's name in a run's files: what decides how it puts concepts together."""
    return slug(f"{system.merge} {system.strength} {system.settings.step_size:g}")
