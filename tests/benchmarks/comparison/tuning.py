"""Step sizes of every recipe, by the same walk, on concepts and a seed of their own.

The grid is half decades, one step size for both factors.  The walk starts in the middle and goes to whichever side is
better until neither is.  The score is the mean identity of a few concepts learned in sequence, in their sum, or each
alone for what merges start from.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from seqlora_core.composition.fusion import FUSIONS
from seqlora_core.errors import TrainingDiverged, TrainingExploded
from seqlora_core.training.methods import METHODS

from .measure import alone, final
from .recipes import LORA, Recipe, System
from .runs import Run, Workshop, read_json, write_json

CONCEPTS, SEED = 4, 100
STRENGTH_CONCEPTS = 16
# Exponents of the square root of ten: where a walk starts, and where the grid ends.
START = {"adam": -4, "gradient": 0, "loraclr": -4}
BOUNDS = {"adam": (-7, 0), "gradient": (-3, 5), "loraclr": (-9, -1)}
STRENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18)
DIVERGED = -1.0


def size(exponent: int) -> float:
    """A step size of the grid, with two digits."""
    return float(f"{10 ** (exponent / 2):.1e}")


def walk(score: Callable[[float], float], start: int, bounds: tuple[int, int]) -> dict:
    """Find the best step size; return it with every trial."""
    trials: dict[int, float] = {}

    def tried(exponent: int) -> float:
        if exponent not in trials:
            trials[exponent] = score(size(exponent))
        return trials[exponent]

    best = start
    while True:
        better = max((side for side in (best - 1, best + 1) if bounds[0] <= side <= bounds[1]), key=tried)
        if tried(better) <= tried(best):
            break
        best = better
    return {
        "step_size": size(best),
        "at_bound": best in bounds,
        "trials": [[size(exponent), round(found, 4)] for exponent, found in sorted(trials.items())],
    }


class Tuning:
    """The choices, one file each."""

    def __init__(self, shop: Workshop) -> None:
        self.shop, self.folder = shop, shop.out / "tuning"

    def choice(self, name: str) -> dict | None:
        """The choice for a recipe, or for the merge "loraclr", or "strength"; None before it is made."""
        return read_json(self._path(name))

    def run(self, recipe: Recipe, step_size: float) -> Run:
        """The run of a trial."""
        name = f"tuning-{recipe.name}-{step_size:g}"
        return Run(self.shop, name, recipe, recipe.config(SEED, step_size), self.shop.tuning_concepts)

    def tune(self, recipe: Recipe) -> None:
        """Choose a recipe's step size, unless that was done."""

        def score(step_size: float) -> float:
            run = self.run(recipe, step_size)
            try:
                learned = run.learn(CONCEPTS)
            except (TrainingDiverged, TrainingExploded):
                return DIVERGED
            if recipe.tuned_alone:
                return fmean(alone(run, learned).values())
            return fmean(final(System("", recipe), run, learned).values())

        if self.choice(recipe.name) is None:
            self._choose(recipe.name, walk(score, START[recipe.optimizer], BOUNDS[recipe.optimizer]))

    def tune_merges(self) -> None:
        """Choose the strength of summed LoRAs and the step size of LoRACLR, on more concepts, unless that was done."""
        run = self.run(LORA, self.choice(LORA.name)["step_size"])
        learned = run.learn(STRENGTH_CONCEPTS)

        def merged(system: System) -> float:
            return fmean(final(system, run, learned).values())

        if self.choice("strength") is None:
            trials = [[strength, merged(System("", LORA, strength=strength))] for strength in STRENGTHS]
            self._choose("strength", {"strength": max(trials, key=lambda trial: trial[1])[0], "trials": trials})
        if self.choice("loraclr") is None:

            def score(step_size: float) -> float:
                system = System("", LORA, "loraclr")
                return merged(replace(system, settings=replace(system.settings, step_size=step_size)))

            self._choose("loraclr", walk(score, START["loraclr"], BOUNDS["loraclr"]))

    def tuned(self, system: System) -> System:
        """The system with the strength or step size that was chosen for its merge."""
        if system.strength is None:
            system = replace(system, strength=self.choice("strength")["strength"])
        if system.merge == "loraclr":
            settings = replace(system.settings, step_size=self.choice("loraclr")["step_size"])
            system = replace(system, settings=settings)
        return system

    def _choose(self, name: str, chosen: dict) -> None:
        write_json(self._path(name), chosen)
        print(f"{name}: {chosen}", flush=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def is_available(system: System) -> bool:
    """Whether this version has the system's method and merge."""
    merges = (*FUSIONS, "own words", "switching", "words alone")
    return system.recipe.settings.get("method", "seqlora") in METHODS and system.merge in merges
