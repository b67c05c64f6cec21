"""Pairs, triples and halves put together by themselves: each member alone, and both of a pair in one image."""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from seqlora_core.bank import Concept
from seqlora_core.bank.names import slug
from seqlora_core.data.images import to_tensor
from seqlora_core.mini.identity import load_identity
from tests.mini.identity import halves

from .recipes import System
from .runs import Run, folded, put_together, sample_images

RELATION = "left of"
# Places in the order of training; neighbours look alike, others do not.
ALIKE = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (12, 13))
APART = ((0, 8), (1, 15), (2, 6), (3, 11), (5, 14), (7, 10))
TRIPLES = ((0, 1, 2), (4, 5, 6), (13, 14, 15), (0, 5, 10), (1, 7, 12), (3, 8, 15))
HALVES = (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
PAIRS = {"pairs that look alike": ALIKE, "pairs that do not": APART}
KINDS = {**PAIRS, "triples": TRIPLES, "halves": HALVES}


def measure_subsets(system: System, run: Run, count: int) -> dict:
    """Measure the mean identity of the members of each subset, and of both halves of images that show a pair."""
    learned = run.learn(count)
    members, together = {}, {}
    for kind, subsets in KINDS.items():
        chosen = [[learned[place] for place in subset] for subset in subsets]
        members[kind] = [fmean(_members(system, run, subset).values()) for subset in chosen]
        if kind in PAIRS:
            together[kind] = [fmean(_together(system, run, pair).values()) for pair in chosen]
    return {"system": system.name, "seed": run.config.seed, "members": members, "together": together}


def _members(system: System, run: Run, subset: Sequence[Concept]) -> dict[str, float]:
    return run.sheet(f"{_name(system, subset)}/members", subset, lambda: _composed(system, run, subset))["scores"]


def _together(system: System, run: Run, pair: Sequence[Concept]) -> dict[str, float]:
    """Score each half of "a X left of a Y" by the references of the concept that belongs there."""

    def make() -> dict[str, float]:
        left, right = pair
        prompt = f"a {left.subject} {RELATION} a {right.subject}"
        with folded(run.base, _composed(system, run, pair)[0]):
            images = sample_images(run.base, prompt, run.config.seed)
        sides = halves(to_tensor(images), RELATION)
        return {concept.name: _identity(run, concept, side) for concept, side in zip(pair, sides, strict=True)}

    return run.cached(f"{_name(system, pair)}/together", make)


@torch.no_grad()
def _identity(run: Run, concept: Concept, pixels: Tensor) -> float:
    network = load_identity()
    return (network(pixels) @ network(to_tensor(run.references(concept.name))).T).mean().item()


def _composed(system: System, run: Run, subset: Sequence[Concept]):
    return put_together(run.base, system, run.selected(subset, system.strength))


def _name(system: System, subset: Sequence[Concept]) -> str:
    members = "+".join(slug(concept.name) for concept in subset)
    return f"subsets/{system.composition}/{members}"
