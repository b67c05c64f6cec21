"""Step sizes of every recipe, by the same walk, on concepts and a seed of their own.

The grid is half decades, one step size for both factors.  The walk starts in the middle and goes to whichever side is
better until neither is.  The score is the mean identity of a few concepts learned in sequence, in their sum, or each
alone for what merges start from.
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

from filelock import FileLock

from seqlora_core.composition.fusion import FUSIONS, FusionSettings
from seqlora_core.errors import TrainingDiverged, TrainingExploded
from seqlora_core.training.methods import METHODS

from .measure import alone, final
from .recipes import LORA, Recipe, System
from .runs import Run, Workshop, read_json, write_json

CONCEPTS, SEED = 4, 100
MERGED_CONCEPTS = 16
# Exponents of the square root of ten: where a walk starts, and where the grid ends.
START = {"adam": -4, "gradient": 0, "loraclr": -4}
BOUNDS = {"adam": (-7, 0), "gradient": (-3, 5), "loraclr": (-9, -1)}
STRENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.09, 0.06)
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
    """The choices, one file each: of recipes by their name, of merges "strength" and "loraclr"."""

    def __init__(self, shop: Workshop) -> None:
        self.shop, self.folder = shop, shop.out / "tuning"

    def run(self, recipe: Recipe, step_size: float) -> Run:
        """The run of a trial."""
        name = f"tuning-{recipe.name}-{step_size:g}"
        return Run(self.shop, name, recipe, recipe.config(SEED, step_size), self.shop.tuning_concepts)

    def step_size(self, recipe: Recipe) -> float:
        """The step size of a recipe, chosen now if it was not."""

        def score(step_size: float) -> float:
            run = self.run(recipe, step_size)
            try:
                learned = run.learn(CONCEPTS)
            except (TrainingDiverged, TrainingExploded):
                return DIVERGED
            if recipe.tuned_alone:
                return fmean(alone(run, learned).values())
            return fmean(final(System("", recipe), run, learned).values())

        start, bounds = START[recipe.optimizer], BOUNDS[recipe.optimizer]
        return self._chosen(recipe.name, lambda: walk(score, start, bounds))["step_size"]

    def tuned(self, system: System) -> System:
        """The system with the strength or step size of its merge, chosen now, on more concepts, if it was not."""

        def merged(**changes: object) -> float:
            run = self.run(LORA, self.step_size(LORA))
            return fmean(final(replace(system, **changes), run, run.learn(MERGED_CONCEPTS)).values())

        def strengths() -> dict:
            trials = [[strength, merged(strength=strength)] for strength in STRENGTHS]
            best = max(trials, key=lambda trial: trial[1])[0]
            return {"strength": best, "at_bound": best in (STRENGTHS[0], STRENGTHS[-1]), "trials": trials}

        def with_step_size(step_size: float) -> FusionSettings:
            return replace(system.settings, step_size=step_size)

        if system.strength is None:
            return replace(system, strength=self._chosen("strength", strengths)["strength"])
        if system.merge == "loraclr":

            def score(step_size: float) -> float:
                return merged(settings=with_step_size(step_size))

            chosen = self._chosen("loraclr", lambda: walk(score, START["loraclr"], BOUNDS["loraclr"]))
            return replace(system, settings=with_step_size(chosen["step_size"]))
        return system

    def _chosen(self, name: str, choose: Callable[[], dict]) -> dict:
        """The stored choice of that name; processes that need it at once wait for the one that makes it."""
        path = self.folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{name}.lock"):
            if not path.is_file():
                write_json(path, choose())
                print(f"{name}: {read_json(path)}", flush=True)
            return read_json(path)


def is_available(system: System) -> bool:
    """Whether this version has the system's method and merge."""
    merges = (*FUSIONS, "own words", "switching", "words alone")
    return system.recipe.settings.get("method", "seqlora") in METHODS and system.merge in merges
