"""The learning rates of every trained method, chosen on concepts and a seed of their own.

A walk on a grid of half decades: `lr_coefficients` from 1e-2, with `lr_basis` at 1e-2, to whichever side is better
until neither is; then, for methods that move B, `lr_basis` likewise.  The score is the mean identity of a few concepts
learned in sequence, in the sum of all or (for the LoRAs that fusions start from) each alone.  A sequence varies a good
deal with its seed, so where pairs of the walk are close to its best, twice as many concepts and two seeds decide.
LoRACLR's own step size is chosen by a walk too, from the published one, and recorded as a pair of equal numbers; the
other fusions have none.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from seqlora_core.bank import Concept
from seqlora_core.errors import TrainingDiverged

from .measure import after, alone
from .recipes import Recipe, System
from .records import read_record, write_json
from .runs import Run, put_together

# Of those beyond the 32nd: four birds, two fish, two horses.
CONCEPTS = ("flamingo", "parrot", "peacock", "owl", "tropical fish", "blowfish", "racehorse", "unicorn")
ALONE = 3  # of them, where each is scored alone: the others add little
SEED = 100
NEAR = 0.95  # of the best score of a walk: the walk cannot tell closer ones apart
DECIDING_SEEDS = (SEED, SEED + 1)
# Exponents of the square root of ten: where a walk starts, and where the grid ends.
START = {"adam": -4, "gradient": 0, "loraclr": -8}
RANGE = {"adam": (-8, -1), "gradient": (-4, 4), "loraclr": (-9, -2)}
_FROZEN_BASIS = ("orthogonal", "inflora")

Trial = Callable[[float, float], float]  # (lr_coefficients, lr_basis) -> score, larger is better


def size(exponent: int) -> float:
    """A learning rate of the grid, with two digits."""
    return float(f"{10 ** (exponent / 2):.1e}")


def rates(record: dict) -> tuple[float, float]:
    """The learning rates (coefficients, basis) of a trial or a choice."""
    return record["lr_coefficients"], record["lr_basis"]


def choose(recipe: Recipe, trial: Trial) -> dict:
    """Find the best learning rates; return them with every trial of the walk."""
    optimizer = str(recipe.settings.get("optimizer", "adam"))
    bounds = RANGE[optimizer]
    scores: dict[tuple[int, int], float] = {}

    def tried(coefficients: int, basis: int) -> float:
        if (coefficients, basis) not in scores:
            scores[coefficients, basis] = trial(size(coefficients), size(basis))
        return scores[coefficients, basis]

    start = START[optimizer]
    frozen = recipe.method in _FROZEN_BASIS
    coefficients = _climb(lambda exponent: tried(exponent, exponent if frozen else start), start, bounds)
    basis = coefficients if frozen else _climb(lambda exponent: tried(coefficients, exponent), start, bounds)
    trials = [_scored(size(a), size(b), score) for (a, b), score in sorted(scores.items())]
    return {**_scored(size(coefficients), size(basis), scores[coefficients, basis]), "trials": trials}


def near_pairs(chosen: dict) -> list[dict]:
    """The trials of a walk that it cannot tell from its best; empty if that has no close rival."""
    near = [pair for pair in chosen["trials"] if pair["score"] >= NEAR * chosen["score"]]
    return near if len(near) > 1 else []


def decide(chosen: dict, trial: Trial) -> dict:
    """Choose among the near pairs of a walk by `trial`, a better score than the walk's."""
    near = near_pairs(chosen)
    if not near:
        return chosen
    finals = [_scored(*rates(pair), trial(*rates(pair))) for pair in near]
    lr_coefficients, lr_basis = rates(max(finals, key=lambda pair: pair["score"]))
    return {**chosen, "lr_coefficients": lr_coefficients, "lr_basis": lr_basis, "finals": finals}


def _scored(lr_coefficients: float, lr_basis: float, score: float) -> dict:
    return {"lr_coefficients": lr_coefficients, "lr_basis": lr_basis, "score": score}


def _is_decided(recipe: Recipe) -> bool:
    return recipe.decided and recipe.tuned_for == "final"


def _climb(score: Callable[[int], float], start: int, bounds: tuple[int, int]) -> int:
    """Walk from `start` to a point from which neither side is better."""
    best = start
    while True:
        sides = [side for side in (best - 1, best + 1) if bounds[0] <= side <= bounds[1]]
        better = max(sides, key=score)
        if score(better) <= score(best):
            return best
        best = better


def final(run: Run) -> float:
    """Score all concepts of a run in the sum of all by their mean identity; -1 if a training run diverged."""
    try:
        learned = run.learn(len(run.concepts))
    except TrainingDiverged:
        return -1.0
    return fmean(after(run, learned, learned).values())


class Tuning:
    """The choices of learning rates, stored in a folder, one file per method.

    Args:
        open_run: (recipe, lr_coefficients, lr_basis) -> the run of a trial.
        open_deciding: (recipe, lr_coefficients, lr_basis, seed) -> a run that decides between near pairs.
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

    def choices(self) -> list[dict]:
        """All choices so far, in the order of their files."""
        return [read_record(path) for path in sorted(self.folder.glob("*.json"))]

    def choice(self, recipe: Recipe) -> dict | None:
        """The choice for a recipe, if it has been made."""
        return read_record(self._path(recipe.tuning))

    def walk(self, recipe: Recipe) -> dict:
        """Walk for a recipe; its trials are stored, so that a second time costs little."""
        return choose(recipe, lambda *pair: self._score(recipe, *pair))

    def deciding_runs(self, recipe: Recipe) -> list[Run]:
        """The runs that decide between pairs which the walk cannot tell apart."""
        near = near_pairs(self.walk(recipe)) if _is_decided(recipe) else []
        return [run for pair in near for run in self._deciding_runs(recipe, *rates(pair))]

    def tune(self, recipe: Recipe) -> None:
        """Choose, unless that was done."""
        if self.choice(recipe) is None:
            chosen = self.walk(recipe)
            if _is_decided(recipe):
                chosen = decide(chosen, lambda *pair: fmean(map(final, self._deciding_runs(recipe, *pair))))
            write_json(self._path(recipe.tuning), {"method": recipe.tuning, **chosen})
            print("{}: learning rates {:g} (coefficients) and {:g} (basis)".format(recipe.tuning, *rates(chosen)))

    def tuned(self, system: System) -> System:
        """The system with the step size that was chosen for its fusion."""
        chosen = read_record(self._path(system.fusion))
        if chosen is None:
            return system
        return replace(system, settings=replace(system.settings, step_size=rates(chosen)[0]))

    def tune_fusion(self, system: System) -> None:
        """Choose the step size of a fusion's optimizer, unless that was done."""
        path, scores = self._path(system.fusion), {}
        if path.is_file():
            return
        run = self._open_run(system.recipe, *rates(self.choice(system.recipe)))
        learned = run.learn(self._concepts)

        def score(exponent: int) -> float:
            if exponent not in scores:
                settings = replace(system.settings, step_size=size(exponent))
                scores[exponent] = fmean(self._fused(replace(system, settings=settings), run, learned).values())
            return scores[exponent]

        best = _climb(score, START[system.fusion], RANGE[system.fusion])
        trials = [_scored(size(exponent), size(exponent), found) for exponent, found in sorted(scores.items())]
        chosen = _scored(size(best), size(best), scores[best])
        write_json(path, {"method": system.fusion, **chosen, "trials": trials})
        print(f"{system.fusion}: step size {size(best):g}", flush=True)

    def _fused(self, system: System, run: Run, learned: Sequence[Concept]) -> dict[str, float]:
        name = f"tuning/{system.composition}"
        return run.sheet(name, learned, lambda: put_together(run.base, system, run.selected(learned)))["scores"]

    def _score(self, recipe: Recipe, lr_coefficients: float, lr_basis: float) -> float:
        run = self._open_run(recipe, lr_coefficients, lr_basis)
        if recipe.tuned_for == "final":
            return final(run)
        try:
            return fmean(alone(run, concept) for concept in run.learn(min(ALONE, self._concepts)))
        except TrainingDiverged:
            return -1.0

    def _deciding_runs(self, recipe: Recipe, lr_coefficients: float, lr_basis: float) -> list[Run]:
        return [self._open_deciding(recipe, lr_coefficients, lr_basis, seed) for seed in DECIDING_SEEDS]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"
