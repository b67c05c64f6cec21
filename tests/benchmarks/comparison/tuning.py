"""The step sizes of every trained method, chosen on concepts and a seed of their own.

A walk on a grid of half decades: first alpha = beta, from 3e-3 to whichever side is better until neither is; then beta
alone, where the method moves it.  What counts is the mean identity of a few concepts learned in sequence, in the sum
of all or (for the LoRAs that fusions start from) each alone.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from seqlora_core.errors import TrainingDiverged

from .measure import after, alone
from .recipes import Recipe
from .runs import Run, read_json, write_json

CONCEPTS = ("flamingo", "parrot", "koala", "panda")  # two pairs that look alike, of those beyond the 32nd
SEED = 100
LEAST, MOST = -8, -1  # of the exponents of the square root of ten: 1e-4 to 0.3
START = {"adam": -5, "gradient": 0}
RANGE = {"adam": (LEAST, MOST), "gradient": (-4, 4)}
_FROZEN_BASIS = ("orthogonal", "inflora")

Trial = Callable[[float, float], float]  # (alpha, beta) -> the figure that counts, larger is better


def size(exponent: int) -> float:
    """A step size of the grid, with two digits."""
    return float(f"{10 ** (exponent / 2):.1e}")


def choose(recipe: Recipe, trial: Trial) -> dict:
    """The best step sizes found, with every trial of the walk."""
    optimizer = str(recipe.settings.get("optimizer", "adam"))
    bounds = RANGE[optimizer]
    scores: dict[tuple[int, int], float] = {}

    def tried(alpha: int, beta: int) -> float:
        if (alpha, beta) not in scores:
            scores[alpha, beta] = trial(size(alpha), size(beta))
        return scores[alpha, beta]

    both = _climb(lambda exponent: tried(exponent, exponent), START[optimizer], bounds)
    beta = both if recipe.method in _FROZEN_BASIS else _climb(lambda exponent: tried(both, exponent), both, bounds)
    trials = [{"alpha": size(a), "beta": size(b), "score": score} for (a, b), score in sorted(scores.items())]
    return {"alpha": size(both), "beta": size(beta), "score": scores[both, beta], "trials": trials}


def _climb(figure: Callable[[int], float], start: int, bounds: tuple[int, int]) -> int:
    """The point from which neither side is better."""
    best = start
    while True:
        sides = [side for side in (best - 1, best + 1) if bounds[0] <= side <= bounds[1]]
        better = max(sides, key=figure)
        if figure(better) <= figure(best):
            return best
        best = better


class Tuning:
    """Choices that are kept in a folder, one file a method.

    Args:
        open_run: (recipe, alpha, beta) -> the run of a trial.
    """

    def __init__(self, folder: Path, open_run: Callable[[Recipe, float, float], Run]) -> None:
        self.folder, self._open_run = folder, open_run

    def choice(self, recipe: Recipe) -> dict | None:
        """What was chosen for a recipe's method, if it has been."""
        return read_json(self._path(recipe))

    def tune(self, recipe: Recipe) -> None:
        """Chooses, unless that was done."""
        if self.choice(recipe) is None:
            chosen = choose(recipe, lambda alpha, beta: self._score(recipe, alpha, beta))
            write_json(self._path(recipe), {"method": recipe.tuning, **chosen})
            print(f"{recipe.tuning}: alpha {chosen['alpha']}, beta {chosen['beta']}", flush=True)

    def _score(self, recipe: Recipe, alpha: float, beta: float) -> float:
        run = self._open_run(recipe, alpha, beta)
        try:
            learned = run.learn(len(CONCEPTS))
        except TrainingDiverged:
            return -1.0
        if recipe.tuned_for == "single":
            return fmean(alone(run, concept) for concept in learned)
        return fmean(after(run, learned, learned).values())

    def _path(self, recipe: Recipe) -> Path:
        return self.folder / f"{recipe.tuning}.json"
