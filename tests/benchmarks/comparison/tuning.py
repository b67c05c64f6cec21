"""The step sizes of every trained method, chosen on concepts and a seed of their own.

A walk on a grid of half decades: alpha from 1e-2, with beta at 1e-2, to whichever side is better until neither is;
then, where the method moves B, beta likewise.  What counts is the mean identity of a few concepts learned in sequence,
in the sum of all or (for the LoRAs that fusions start from) each alone.  A sequence varies a good deal with its seed,
so where pairs of the walk are near to its best, twice as many concepts and two seeds decide.  LoRACLR's own step size
is chosen by a walk too, from the published one; the other fusions have none.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from seqlora_core.bank import Concept
from seqlora_core.errors import TrainingDiverged

from .measure import after, alone
from .recipes import Recipe, System
from .runs import Run, put_together, read_json, write_json

# Of those beyond the 32nd: four birds, two fish, two horses.
CONCEPTS = ("flamingo", "parrot", "peacock", "owl", "tropical fish", "blowfish", "racehorse", "unicorn")
ALONE = 3  # of them, where each counts alone: the others tell little more
SEED = 100
NEAR = 0.95  # of the best figure of a walk: no nearer ones can be told apart by it
DECIDING_SEEDS = (SEED, SEED + 1)
# Exponents of the square root of ten: where a walk starts, and where the grid ends.
START = {"adam": -4, "gradient": 0, "loraclr": -8}
RANGE = {"adam": (-8, -1), "gradient": (-4, 4), "loraclr": (-9, -2)}
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

    start = START[optimizer]
    frozen = recipe.method in _FROZEN_BASIS
    alpha = _climb(lambda exponent: tried(exponent, exponent if frozen else start), start, bounds)
    beta = alpha if frozen else _climb(lambda exponent: tried(alpha, exponent), start, bounds)
    trials = [{"alpha": size(a), "beta": size(b), "score": score} for (a, b), score in sorted(scores.items())]
    return {"alpha": size(alpha), "beta": size(beta), "score": scores[alpha, beta], "trials": trials}


def near_pairs(chosen: dict) -> list[dict]:
    """The trials of a walk that it cannot tell from its best; none where that stands alone."""
    near = [pair for pair in chosen["trials"] if pair["score"] >= NEAR * chosen["score"]]
    return near if len(near) > 1 else []


def decide(chosen: dict, trial: Trial) -> dict:
    """The choice of a walk, or the pair near to it for which `trial`, a better figure than the walk's, is largest."""
    near = near_pairs(chosen)
    if not near:
        return chosen
    finals = [{**pair, "score": trial(pair["alpha"], pair["beta"])} for pair in near]
    best = max(finals, key=lambda pair: pair["score"])
    return {**chosen, "alpha": best["alpha"], "beta": best["beta"], "finals": finals}


def _is_decided(recipe: Recipe) -> bool:
    return recipe.decided and recipe.tuned_for == "final"


def _climb(figure: Callable[[int], float], start: int, bounds: tuple[int, int]) -> int:
    """The point from which neither side is better."""
    best = start
    while True:
        sides = [side for side in (best - 1, best + 1) if bounds[0] <= side <= bounds[1]]
        better = max(sides, key=figure)
        if figure(better) <= figure(best):
            return best
        best = better


def final(run: Run) -> float:
    """The mean identity of all concepts of a run, in the sum of all; -1 where a training diverged."""
    try:
        learned = run.learn(len(run.concepts))
    except TrainingDiverged:
        return -1.0
    return fmean(after(run, learned, learned).values())


class Tuning:
    """Choices that are kept in a folder, one file a method.

    Args:
        open_run: (recipe, alpha, beta) -> the run of a trial.
        open_deciding: (recipe, alpha, beta, seed) -> the run that decides between pairs which are near to each other.
        concepts: how many of `CONCEPTS` a trial learns.
    """

    def __init__(
        self,
        folder: Path,
        open_run: Callable[[Recipe, float, float], Run],
        open_deciding: Callable[[Recipe, float, float, int], Run],
        concepts: int,
    ) -> None:
        self.folder, self._open_run, self._open_deciding, self._concepts = folder, open_run, open_deciding, concepts

    def choice(self, recipe: Recipe) -> dict | None:
        """What was chosen for a recipe's method, if it has been."""
        return read_json(self._path(recipe.tuning))

    def walk(self, recipe: Recipe) -> dict:
        """The walk of a method; what its trials made is kept, so that a second time costs little."""
        return choose(recipe, lambda alpha, beta: self._score(recipe, alpha, beta))

    def deciding_runs(self, recipe: Recipe) -> list[Run]:
        """The runs that decide between pairs which the walk cannot tell apart."""
        near = near_pairs(self.walk(recipe)) if _is_decided(recipe) else []
        return [run for pair in near for run in self._deciding_runs(recipe, pair["alpha"], pair["beta"])]

    def tune(self, recipe: Recipe) -> None:
        """Chooses, unless that was done."""
        if self.choice(recipe) is None:
            chosen = self.walk(recipe)
            if _is_decided(recipe):
                chosen = decide(chosen, lambda *pair: fmean(map(final, self._deciding_runs(recipe, *pair))))
            write_json(self._path(recipe.tuning), {"method": recipe.tuning, **chosen})
            print(f"{recipe.tuning}: alpha {chosen['alpha']}, beta {chosen['beta']}", flush=True)

    def tuned(self, system: System) -> System:
        """The system with what was chosen for its fusion."""
        chosen = read_json(self._path(system.fusion))
        if chosen is None:
            return system
        return replace(system, settings=replace(system.settings, step_size=chosen["alpha"]))

    def tune_fusion(self, system: System) -> None:
        """Chooses the step size of a fusion's optimizer, unless that was done."""
        path, scores = self._path(system.fusion), {}
        if path.is_file():
            return
        steps = self.choice(system.recipe)
        run = self._open_run(system.recipe, steps["alpha"], steps["beta"])
        learned = run.learn(self._concepts)

        def figure(exponent: int) -> float:
            if exponent not in scores:
                settings = replace(system.settings, step_size=size(exponent))
                scores[exponent] = fmean(self._fused(replace(system, settings=settings), run, learned).values())
            return scores[exponent]

        best = _climb(figure, START[system.fusion], RANGE[system.fusion])
        trials = [{"alpha": size(e), "beta": size(e), "score": score} for e, score in sorted(scores.items())]
        chosen = {"method": system.fusion, "alpha": size(best), "beta": size(best), "score": scores[best]}
        write_json(path, {**chosen, "trials": trials})
        print(f"{system.fusion}: step size {size(best)}", flush=True)

    def _fused(self, system: System, run: Run, learned: Sequence[Concept]) -> dict[str, float]:
        name = f"tuning/{system.composition}"
        return run.sheet(name, learned, lambda: put_together(run.base, system, run.parts(learned)))["scores"]

    def _score(self, recipe: Recipe, alpha: float, beta: float) -> float:
        run = self._open_run(recipe, alpha, beta)
        if recipe.tuned_for == "final":
            return final(run)
        try:
            return fmean(alone(run, concept) for concept in run.learn(min(ALONE, self._concepts)))
        except TrainingDiverged:
            return -1.0

    def _deciding_runs(self, recipe: Recipe, alpha: float, beta: float) -> list[Run]:
        return [self._open_deciding(recipe, alpha, beta, seed) for seed in DECIDING_SEEDS]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"
