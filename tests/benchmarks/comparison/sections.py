"""The sections of the experiment: the runs that each needs, and the results that it stores."""

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
from seqlora_core.training.config import ResolvedConfig

from .archive import FACTS
from .base_drift import measure_base_drift
from .forecast import forecast
from .job_queue import Job
from .measure import measure
from .recipes import (
    ALTERNATING,
    CHANGED_RIVALS,
    CONTESTED,
    DEFAULTS,
    OURS,
    PLAIN_BASE,
    RIVAL,
    SEQLORA,
    SYSTEMS,
    VARIANTS,
    Recipe,
    System,
    Variant,
    resolved,
)
from .records import read_json, read_record, write_json
from .runs import Run, sample_images
from .subsets import measure_subsets
from .tuning import CONCEPTS, DECIDING_SEEDS, SEED, START, Tuning, final, rates

OF_TABLE = 32  # learning rates are chosen on those beyond; the row of 48 has them all
MIDDLE = 16  # concepts of everything except the main table
SEED_OF_ALL = 0  # the others are for the main table at 16 alone
ORDERS = (1, 2)
SATURATED = Recipe("seqlora", {"layers": "all", "rank": 4})
SATURATED_COUNT = 32  # the narrowest layers are full after 20, the next after 28
# Those with learning rates of their own, which take longer to choose than to use, are sections of their own.
BY_GRADIENT = [variant for variant in VARIANTS if variant.factor == "optimizer"]
AS_PUBLISHED = [variant for variant in VARIANTS if variant.recipe.alias == "published"]
ABLATION = [variant for variant in VARIANTS if variant not in (*BY_GRADIENT, *AS_PUBLISHED)]


@dataclass(frozen=True)
class Scope:
    """How much of the experiment is wanted.

    Attributes:
        counts: numbers of concepts of the main table.
        seeds: of the main table.
        passes: forward-backward passes per concept.
        layers: the preset that every method adapts.
        tuning_concepts: how many a trial of learning rates learns.
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
        """The systems that are wanted, with the step sizes that were chosen for their fusions."""
        return [self.tuning.tuned(system) for system in self.scope.systems]

    @property
    def tuned_on(self) -> list[MiniConcept]:
        """The concepts that learning rates are chosen on."""
        return [concept for concept in self.concepts if concept.name in CONCEPTS[: self.scope.tuning_concepts]]

    def run(self, recipe: Recipe, seed: int, concepts: Sequence[MiniConcept] | None = None) -> Run:
        """Open the run of a recipe with the learning rates that were chosen for it."""
        return self._open(recipe, seed, concepts or self.concepts, *rates(self.tuning.choice(recipe)))

    def job(self, section: str, name: str, at: Path, make: Callable[..., dict], *inputs) -> Job:
        """A job that stores what `make(*inputs)` returns as a result; `at` is the folder that it works in."""

        def do() -> None:
            path = self.out / "results" / section / f"{slug(name)}.json"
            if path.is_file():
                return
            try:
                write_json(path, make(*inputs))
                print(f"{section}: {name} is done", flush=True)
            except TrainingDiverged as error:
                print(f"{section}: {name} is left out: {error}", flush=True)

        return Job(name, at / ".job.lock", do)

    def _check_same_experiment(self) -> None:
        """Refuse a folder with results of other settings, which would be taken for the ones asked for."""
        facts = {"base": self.base.identity.fingerprint, "passes": self.scope.passes, "layers": self.scope.layers}
        facts["tuning_concepts"] = self.scope.tuning_concepts
        path = self.out / FACTS
        if not path.is_file():
            write_json(path, facts)
        if (found := read_json(path)) != facts:
            raise UserError(f"{self.out} holds an experiment with {found}, not {facts}. Give another folder.")

    def open(self, config: ResolvedConfig, concepts: Sequence[MiniConcept]) -> Run:
        """Open the run of these settings."""
        return Run(self.base, self.out / "runs", config, concepts, self.monitor)

    def deciding(self, recipe: Recipe, lr_coefficients: float, lr_basis: float, seed: int) -> Run:
        """Open the run of a recipe on the concepts that decide between near settings."""
        concepts = self.concepts[OF_TABLE:][: 2 * self.scope.tuning_concepts]
        return self._open(recipe, seed, concepts, lr_coefficients, lr_basis)

    def _trial(self, recipe: Recipe, lr_coefficients: float, lr_basis: float) -> Run:
        return self._open(recipe, SEED, self.tuned_on, lr_coefficients, lr_basis)

    def _open(
        self, recipe: Recipe, seed: int, concepts: Sequence[MiniConcept], lr_coefficients: float, lr_basis: float
    ) -> Run:
        config = recipe.config(self.scope.passes, seed, lr_coefficients, lr_basis, self.scope.layers)
        return self.open(config, concepts)


def walk_jobs(experiment: Experiment, recipes: Sequence[Recipe]) -> list[Job]:
    """The walks of all methods whose learning rates are not chosen yet."""
    return _tuning_jobs(experiment, recipes, experiment.tuning.walk)


def deciding_jobs(experiment: Experiment, recipes: Sequence[Recipe]) -> list[Job]:
    """After the walks: the runs that decide where a walk does not, one job each."""
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
        # A method that is tuned for two scores shares its trials.
        Job(name, folder / f".{recipe.method}.lock", lambda recipe=recipe: do(recipe))
        for name, recipe in _untuned(experiment, recipes).items()
    ]


def _untuned(experiment: Experiment, recipes: Sequence[Recipe]) -> dict[str, Recipe]:
    """The recipes that learning rates are still to be chosen for, by the name of the choice."""
    tuned = {recipe.tuning: recipe.tuned for recipe in recipes}
    return {name: recipe for name, recipe in tuned.items() if experiment.tuning.choice(recipe) is None}


def fusion_tuning_jobs(experiment: Experiment) -> list[Job]:
    """The walks of fusions that have a step size of their own."""
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
    """What the base makes of the class word alone: a concept that scores no more was not learned."""

    def make() -> dict:
        words = dict.fromkeys(concept.class_word for concept in experiment.concepts)
        images = {word: sample_images(experiment.base, subject_prompt(word), SEED_OF_ALL) for word in words}
        scores = {c.name: score(Identity(), images[c.class_word], c.references, "") for c in experiment.concepts}
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
    """`train` with its default numbers, as a user has them, and with others."""

    def make(variant: Variant, run: Run) -> dict:
        measured = measure(System(OURS, variant.recipe), run, len(run.concepts))
        return {"setting": variant.factor, "value": variant.value, **measured}

    jobs = []
    for variant in DEFAULTS:
        run = experiment.open(resolved(seed=SEED, **variant.recipe.settings), experiment.tuned_on)
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
    """What the ablation leaves open, on the concepts and seeds that decide between near learning rates."""

    def make(variant: Variant, run: Run) -> dict:
        return {"factor": variant.factor, "value": variant.value, "seed": run.config.seed, "final": final(run)}

    jobs = []
    for variant in CONTESTED:
        pair = rates(experiment.tuning.choice(variant.recipe))
        for seed in DECIDING_SEEDS:
            run = experiment.deciding(variant.recipe, *pair, seed)
            name = f"{variant.factor} {variant.value} {seed}"
            jobs.append(experiment.job("choices", name, run.folder, make, variant, run))
    return jobs


def saturation_jobs(experiment: Experiment) -> list[Job]:
    """All layers, until none has room."""
    run = experiment.run(SATURATED, SEED_OF_ALL)
    system = System(OURS, SATURATED)
    return [experiment.job("saturation", OURS, run.folder, measure, system, run, SATURATED_COUNT)]


def subset_jobs(experiment: Experiment) -> list[Job]:
    """Pairs, triples and halves of the first 16 concepts, each put together by itself."""
    return _jobs_at_middle(experiment, "subsets", measure_subsets, experiment.systems)


def base_drift_jobs(experiment: Experiment) -> list[Job]:
    """How much images of other things change."""
    return _jobs_at_middle(experiment, "others", measure_base_drift, experiment.systems)


def forecast_jobs(experiment: Experiment) -> list[Job]:
    """The forgetting that diagnostics forecast, and the forgetting that was measured."""
    sequential = [system for system in experiment.systems if system.sequential]
    return _jobs_at_middle(experiment, "forecast", forecast, sequential)


def _jobs_at_middle(
    experiment: Experiment, section: str, make: Callable[..., dict], systems: Sequence[System]
) -> list[Job]:
    runs = [experiment.run(system.recipe, SEED_OF_ALL) for system in systems]
    return [
        experiment.job(section, system.name, run.folder, make, system, run, MIDDLE)
        for system, run in zip(systems, runs, strict=True)
    ]


@dataclass(frozen=True)
class ExperimentSection:
    """A section that can be asked for by name.

    Attributes:
        recipes: those that it needs; None means those of the systems.
    """

    jobs: Callable[[Experiment], list[Job]]
    recipes: Sequence[Recipe] | None = None

    @property
    def of_systems(self) -> bool:
        """Whether it is about the systems."""
        return self.recipes is None

    def needed(self, systems: Sequence[System]) -> list[Recipe]:
        """The recipes whose learning rates have to be chosen first."""
        return [system.recipe for system in systems] if self.of_systems else list(self.recipes)


def _section_of_table_4(variants: Sequence[Variant]) -> ExperimentSection:
    recipes = [variant.recipe for variant in variants]
    return ExperimentSection(lambda experiment: ablation_jobs(experiment, variants), recipes)


SECTIONS = {
    "main": ExperimentSection(main_jobs),
    "ablation": _section_of_table_4(ABLATION),
    "choices": ExperimentSection(choice_jobs, [SEQLORA, *(variant.recipe for variant in CONTESTED)]),
    "published": _section_of_table_4(AS_PUBLISHED),
    "defaults": ExperimentSection(default_jobs, []),
    "subsets": ExperimentSection(subset_jobs),
    "others": ExperimentSection(base_drift_jobs),
    "order": ExperimentSection(order_jobs, [SEQLORA, ALTERNATING]),
    "rivals": ExperimentSection(rival_jobs),
    "saturation": ExperimentSection(saturation_jobs, [SATURATED]),
    "forecast": ExperimentSection(forecast_jobs),
    "optimizer": _section_of_table_4(BY_GRADIENT),
}


def read_results(out: Path, section: str) -> list[dict]:
    """Read the results of a section so far, of any version."""
    return [read_record(path) for path in sorted((out / "results" / section).glob("*.json"))]
