"""The parts of the experiment: which runs each of them needs, and which results it keeps."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seqlora_core.bank.names import slug
from seqlora_core.data.prompts import subject_prompt
from seqlora_core.errors import TrainingDiverged, UserError
from seqlora_core.evaluation.metrics import Identity, score
from seqlora_core.mini import MiniConcept, mini_concepts
from seqlora_core.model.base import Base
from seqlora_core.monitor import Monitor
from seqlora_core.training.config import TrainingConfig

from .archive import FACTS
from .forecast import forecast
from .measure import measure
from .others import measure_others
from .recipes import (
    ALTERNATING,
    CHANGED_RIVALS,
    CONTESTED,
    DEFAULTS,
    OURS,
    PLAIN_BASE,
    RESOLUTION,
    RIVAL,
    SEQLORA,
    SYSTEMS,
    VARIANTS,
    Recipe,
    System,
    Variant,
)
from .runs import Run, draw, read_json, write_json
from .subsets import measure_subsets
from .tuning import CONCEPTS, DECIDING_SEEDS, SEED, START, Tuning, final
from .work import Job

OF_TABLE = 32  # step sizes are chosen on those beyond; the row of 48 has them all
MIDDLE = 16  # concepts of everything but the main table
SEED_OF_ALL = 0  # the others are for the main table at 16 alone
ORDERS = (1, 2)
SATURATED = Recipe("seqlora", {"layers": "all", "rank": 4})
SATURATED_COUNT = 32  # the narrowest layers are full after 20, the next after 28
# Those that have to be tuned anew, which takes longer than all that they measure, are parts of their own.
BY_GRADIENT = [variant for variant in VARIANTS if variant.factor == "optimizer"]
AS_PUBLISHED = [variant for variant in VARIANTS if variant.recipe.alias == "published"]
ABLATION = [variant for variant in VARIANTS if variant not in (*BY_GRADIENT, *AS_PUBLISHED)]


@dataclass(frozen=True)
class Scope:
    """How much of the experiment is wanted.

    Attributes:
        counts: numbers of concepts of the main table.
        seeds: of the main table.
        passes: forward-backward passes a concept.
        layers: the preset that every method adapts.
        tuning_concepts: that a trial of step sizes learns.
    """

    counts: Sequence[int]
    seeds: Sequence[int]
    passes: int
    layers: str
    tuning_concepts: int
    systems: Sequence[System] = SYSTEMS


class Experiment:
    """The folder of an experiment, and the way to everything in it."""

    def __init__(self, base: Base, out: Path, scope: Scope, monitor: Monitor) -> None:
        self.base, self.out, self.scope, self.monitor = base, out, scope, monitor
        self.concepts = mini_concepts()
        self.tuning = Tuning(out / "tuning", self._trial, self.deciding, scope.tuning_concepts)
        self._check_same_experiment()

    @property
    def systems(self) -> list[System]:
        """The systems that are wanted, with what was chosen for their fusions."""
        return [self.tuning.tuned(system) for system in self.scope.systems]

    @property
    def tuned_on(self) -> list[MiniConcept]:
        """The concepts that step sizes are chosen on."""
        return [concept for concept in self.concepts if concept.name in CONCEPTS[: self.scope.tuning_concepts]]

    def run(self, recipe: Recipe, seed: int, concepts: Sequence[MiniConcept] | None = None) -> Run:
        """The run of a recipe with the step sizes that were chosen for it."""
        chosen = self.tuning.choice(recipe)
        return self._open(recipe, seed, concepts or self.concepts, chosen["alpha"], chosen["beta"])

    def job(self, part: str, name: str, at: Path, make: Callable[..., dict], *inputs) -> Job:
        """The making of one result by `make(*inputs)`, which is kept as a file; `at` is the folder that it works in."""

        def do() -> None:
            path = self.out / "results" / part / f"{slug(name)}.json"
            if path.is_file():
                return
            try:
                write_json(path, make(*inputs))
                print(f"{part}: {name} is done", flush=True)
            except TrainingDiverged as error:
                print(f"{part}: {name} is left out: {error}", flush=True)

        return Job(name, at / ".job.lock", do)

    def _check_same_experiment(self) -> None:
        """Results of other settings in the same folder would pass for what is asked for."""
        facts = {"base": self.base.identity.fingerprint, "passes": self.scope.passes, "layers": self.scope.layers}
        facts["tuning_concepts"] = self.scope.tuning_concepts
        path = self.out / FACTS
        if not path.is_file():
            write_json(path, facts)
        if (found := read_json(path)) != facts:
            raise UserError(f"{self.out} holds an experiment with {found}, not {facts}: give another folder.")

    def open(self, config: TrainingConfig, concepts: Sequence[MiniConcept]) -> Run:
        """The run of these settings."""
        return Run(self.base, self.out / "runs", config, concepts, self.monitor)

    def deciding(self, recipe: Recipe, alpha: float, beta: float, seed: int) -> Run:
        """The run of a recipe on the concepts that decide between settings which are near to each other."""
        concepts = self.concepts[OF_TABLE:][: 2 * self.scope.tuning_concepts]
        return self._open(recipe, seed, concepts, alpha, beta)

    def _trial(self, recipe: Recipe, alpha: float, beta: float) -> Run:
        return self._open(recipe, SEED, self.tuned_on, alpha, beta)

    def _open(self, recipe: Recipe, seed: int, concepts: Sequence[MiniConcept], alpha: float, beta: float) -> Run:
        return self.open(recipe.config(self.scope.passes, seed, alpha, beta, self.scope.layers), concepts)


def walk_jobs(experiment: Experiment, recipes: Sequence[Recipe]) -> list[Job]:
    """The walks of all methods whose step sizes are not chosen yet."""
    return _tuning_jobs(experiment, recipes, experiment.tuning.walk)


def deciding_jobs(experiment: Experiment, recipes: Sequence[Recipe]) -> list[Job]:
    """After the walks: what decides where they do not, a job for every run of it."""
    return [
        Job(f"{name} decided", run.folder / ".job.lock", lambda run=run: final(run))
        for name, recipe in _untuned(experiment, recipes).items()
        for run in experiment.tuning.deciding_runs(recipe)
    ]


def choosing_jobs(experiment: Experiment, recipes: Sequence[Recipe]) -> list[Job]:
    """After both: the choices."""
    return _tuning_jobs(experiment, recipes, experiment.tuning.tune)


def _tuning_jobs(experiment: Experiment, recipes: Sequence[Recipe], do: Callable[[Recipe], object]) -> list[Job]:
    folder = experiment.tuning.folder
    return [
        # What is tuned for two figures has its trials in common.
        Job(name, folder / f".{recipe.method}.lock", lambda recipe=recipe: do(recipe))
        for name, recipe in _untuned(experiment, recipes).items()
    ]


def _untuned(experiment: Experiment, recipes: Sequence[Recipe]) -> dict[str, Recipe]:
    """What step sizes are still to be chosen for, by its name: all that differs in them, without the rest."""
    tuned = {recipe.tuning: recipe.tuned for recipe in recipes}
    return {name: recipe for name, recipe in tuned.items() if experiment.tuning.choice(recipe) is None}


def fusion_tuning_jobs(experiment: Experiment) -> list[Job]:
    """The same for fusions that have a step size of their own."""
    tuning = experiment.tuning
    return [
        Job(system.name, tuning.folder / f".{system.fusion}.lock", lambda system=system: tuning.tune_fusion(system))
        for system in experiment.scope.systems
        if system.fusion in START
    ]


def main_jobs(experiment: Experiment) -> list[Job]:
    """Every system with every number of concepts; all seeds at 16."""
    jobs = [_plain_base_job(experiment)]
    for count in experiment.scope.counts:
        for seed in experiment.scope.seeds:
            if seed == SEED_OF_ALL or count == MIDDLE:
                for system in experiment.systems:
                    run, name = experiment.run(system.recipe, seed), f"{system.name} {count} {seed}"
                    trajectory = seed == SEED_OF_ALL
                    jobs.append(experiment.job("main", name, run.folder, measure, system, run, count, trajectory))
    return jobs


def _plain_base_job(experiment: Experiment) -> Job:
    """What the base makes of the class word alone: below this a concept is not there at all."""

    def make() -> dict:
        words = dict.fromkeys(concept.class_word for concept in experiment.concepts)
        pictures = {word: draw(experiment.base, subject_prompt(word), SEED_OF_ALL) for word in words}
        scores = {c.name: score(Identity(), pictures[c.class_word], c.references, "") for c in experiment.concepts}
        return {"system": PLAIN_BASE, "seed": SEED_OF_ALL, "scores": {"final": scores}}

    return experiment.job("plain", PLAIN_BASE, experiment.out / "results" / "plain", make)


def ablation_jobs(experiment: Experiment, variants: Sequence[Variant]) -> list[Job]:
    """One setting changed at a time, at 16 concepts (Table 4)."""

    def make(variant: Variant, run: Run) -> dict:
        return {"factor": variant.factor, "value": variant.value, **measure(System(OURS, variant.recipe), run, MIDDLE)}

    jobs = []
    for variant in variants:
        run = experiment.run(variant.recipe, SEED_OF_ALL)
        jobs.append(experiment.job("ablation", f"{variant.factor} {variant.value}", run.folder, make, variant, run))
    return jobs


def default_jobs(experiment: Experiment) -> list[Job]:
    """`train` with its own numbers, as a user has them, and with others."""

    def make(variant: Variant, run: Run) -> dict:
        measured = measure(System(OURS, variant.recipe), run, len(run.concepts))
        return {"setting": variant.factor, "value": variant.value, **measured}

    jobs = []
    for variant in DEFAULTS:
        config = TrainingConfig(resolution=RESOLUTION, seed=SEED, **variant.recipe.settings)
        run = experiment.open(config, experiment.tuned_on)
        jobs.append(experiment.job("defaults", f"{variant.factor} {variant.value}", run.folder, make, variant, run))
    return jobs


def order_jobs(experiment: Experiment) -> list[Job]:
    """The first 16 concepts in other orders."""

    def make(order: int, system: System, run: Run) -> dict:
        return {"order": order, **measure(system, run, MIDDLE)}

    jobs = []
    for order in ORDERS:
        concepts = random.Random(order).sample(experiment.concepts[:MIDDLE], MIDDLE)
        for system in (System(OURS, SEQLORA), System(RIVAL, ALTERNATING)):
            run = experiment.run(system.recipe, SEED_OF_ALL, concepts)
            jobs.append(experiment.job("order", f"{system.name} {order}", run.folder, make, order, system, run))
    return jobs


def rival_jobs(experiment: Experiment) -> list[Job]:
    """The rivals with single settings of SeqLoRA."""

    def make(change: str, system: System, run: Run) -> dict:
        return {"change": change, **measure(system, run, MIDDLE)}

    jobs = []
    for change, systems in CHANGED_RIVALS.items():
        for system in map(experiment.tuning.tuned, systems):
            run = experiment.run(system.recipe, SEED_OF_ALL)
            jobs.append(experiment.job("rivals", f"{change} {system.name}", run.folder, make, change, system, run))
    return jobs


def choice_jobs(experiment: Experiment) -> list[Job]:
    """What the ablation leaves open, on the concepts and the seeds that step sizes are decided by."""

    def make(variant: Variant, run: Run) -> dict:
        return {"factor": variant.factor, "value": variant.value, "seed": run.config.seed, "final": final(run)}

    jobs = []
    for variant in CONTESTED:
        chosen = experiment.tuning.choice(variant.recipe)
        for seed in DECIDING_SEEDS:
            run = experiment.deciding(variant.recipe, chosen["alpha"], chosen["beta"], seed)
            name = f"{variant.factor} {variant.value} {seed}"
            jobs.append(experiment.job("choices", name, run.folder, make, variant, run))
    return jobs


def saturation_jobs(experiment: Experiment) -> list[Job]:
    """All layers, until none has room."""
    run = experiment.run(SATURATED, SEED_OF_ALL)
    system = System(OURS, SATURATED)
    return [experiment.job("saturation", OURS, run.folder, measure, system, run, SATURATED_COUNT)]


def subset_jobs(experiment: Experiment) -> list[Job]:
    """Pairs, triples and halves of the first 16 concepts, put together alone."""
    return _jobs_at_middle(experiment, "subsets", measure_subsets, experiment.systems)


def other_jobs(experiment: Experiment) -> list[Job]:
    """What becomes of pictures of other things."""
    return _jobs_at_middle(experiment, "others", measure_others, experiment.systems)


def forecast_jobs(experiment: Experiment) -> list[Job]:
    """The forgetting that diagnostics expect beside what was measured."""
    sequential = [system for system in experiment.systems if system.sequential]
    return _jobs_at_middle(experiment, "forecast", forecast, sequential)


def _jobs_at_middle(
    experiment: Experiment, part: str, make: Callable[..., dict], systems: Sequence[System]
) -> list[Job]:
    runs = [experiment.run(system.recipe, SEED_OF_ALL) for system in systems]
    return [
        experiment.job(part, system.name, run.folder, make, system, run, MIDDLE)
        for system, run in zip(systems, runs, strict=True)
    ]


@dataclass(frozen=True)
class Part:
    """A part that can be asked for by name.

    Attributes:
        recipes: that it needs; None stands for those of the systems.
    """

    jobs: Callable[[Experiment], list[Job]]
    recipes: Sequence[Recipe] | None = None

    @property
    def of_systems(self) -> bool:
        """Whether it is about the systems."""
        return self.recipes is None

    def needed(self, systems: Sequence[System]) -> list[Recipe]:
        """The recipes whose step sizes have to be chosen first."""
        return [system.recipe for system in systems] if self.of_systems else list(self.recipes)


def _part_of_table_4(variants: Sequence[Variant]) -> Part:
    return Part(lambda experiment: ablation_jobs(experiment, variants), [variant.recipe for variant in variants])


PARTS = {
    "main": Part(main_jobs),
    "ablation": _part_of_table_4(ABLATION),
    "choices": Part(choice_jobs, [SEQLORA, *(variant.recipe for variant in CONTESTED)]),
    "published": _part_of_table_4(AS_PUBLISHED),
    "defaults": Part(default_jobs, []),
    "subsets": Part(subset_jobs),
    "others": Part(other_jobs),
    "order": Part(order_jobs, [SEQLORA, ALTERNATING]),
    "rivals": Part(rival_jobs),
    "saturation": Part(saturation_jobs, [SATURATED]),
    "forecast": Part(forecast_jobs),
    "optimizer": _part_of_table_4(BY_GRADIENT),
}


def read_results(out: Path, part: str) -> list[dict]:
    """All that was kept of a part so far."""
    return [read_json(path) for path in sorted((out / "results" / part).glob("*.json"))]
