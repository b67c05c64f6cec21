"""The comparison of all methods on the mini base, with its tables and figures:

    python -m tests.benchmarks.comparison --out DIR [--results DIR] [--only PART ...] [--seeds S ...]

The parts: `main` (all systems; 16 concepts), `ablation`, `defaults` (of
`train`), `counts` (other numbers of concepts), `selections`, `pairs`, `drift` (of other things), and `tables`, which
writes what there is to DIR/tables or to the folder given with --results.  A run that was stopped goes on with the same
command: what is trained and scored is kept in DIR.  Start it several times to use several cores: each process takes
work that no other one is at.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from seqlora_core.bank.names import slug
from seqlora_core.cli import options
from seqlora_core.cli.terminal import quiet_libraries
from seqlora_core.errors import TrainingDiverged, TrainingExploded
from seqlora_core.model.base import load_base

from .job_queue import Job, run_jobs
from .measure import after, alone, costs, drift, final, final_sheet, pairs, selections
from .recipes import ABLATION, ALTERNATING, DEFAULTS, LORA, OURS, PUBLISHED, SYSTEMS, Recipe, System
from .runs import Run, Workshop, write_json
from .tables import LARGER, MIDDLE, write_tables
from .tuning import CONCEPTS, SEED, Tuning, is_available

FEW, (LARGE, ALL) = (1, 2, 4, 8), LARGER
SEEDS = (0, 1, 2)
AVAILABLE = [system for system in SYSTEMS if is_available(system)]
AT_LARGE = (OURS, PUBLISHED, ALTERNATING, LORA)  # recipes that learn more than 16 concepts
WITHOUT_LARGE = ("switching",)
PARTS = ("main", "ablation", "defaults", "counts", "selections", "pairs", "drift")


@dataclass(frozen=True)
class Comparison:
    """The jobs of every part; step sizes are chosen when they are needed first."""

    shop: Workshop
    tuning: Tuning
    seeds: tuple[int, ...]

    def run(self, recipe: Recipe, seed: int) -> Run:
        """The run of a recipe with its step size."""
        config = recipe.config(seed, self.tuning.step_size(recipe))
        return Run(self.shop, f"{recipe.name}-{seed}", recipe, config, self.shop.concepts)

    def main(self) -> None:
        """Every system with 16 concepts."""
        for seed in self.seeds:
            self._measure("main", MIDDLE, AVAILABLE, seed)

    def ablation(self) -> None:
        """Every row of the ablation with 16 concepts."""
        for seed in self.seeds:
            self._measure("ablation", MIDDLE, [System(name, recipe) for name, recipe in ABLATION], seed)

    def defaults(self) -> None:
        """The defaults of `train` and their neighbours, on the concepts that settings are chosen on."""
        step_size = self.tuning.step_size(OURS)

        def measure(system: System, run: Run) -> dict:
            learned = run.learn(2 * CONCEPTS)
            scores = {"final": final(system, run, learned), "alone": alone(run, learned), "after": after(run, learned)}
            return {"seed": SEED, "count": len(learned), "scores": scores}

        systems = [System(name, recipe) for name, recipe in DEFAULTS]
        self._jobs("defaults", systems, SEED, measure, open_run=lambda recipe: self.tuning.run(recipe, step_size))

    def counts(self) -> None:
        """32 concepts, and 48 with the first seed."""
        systems = [s for s in AVAILABLE if s.recipe in AT_LARGE and s.merge not in WITHOUT_LARGE]
        for seed in self.seeds:
            self._measure("main", LARGE, systems, seed)
        self._measure("main", ALL, systems, SEEDS[0])

        def grown(system: System, run: Run) -> dict:
            learned = run.learn(FEW[-1])
            return {str(count): fmean(final(system, run, learned[:count]).values()) for count in FEW}

        self._jobs("growth", systems, SEEDS[0], grown)

    def selections(self) -> None:
        """2, 4 and 8 of 32 concepts, put together by themselves."""
        systems = [system for system in AVAILABLE if system.recipe in AT_LARGE]
        self._jobs("selections", systems, SEEDS[0], lambda s, run: selections(s, run, run.learn(LARGE)))

    def pairs(self) -> None:
        """Two concepts in one image, with those two loaded and with all 16."""

        def measure(system: System, run: Run) -> dict:
            learned = run.learn(MIDDLE)
            return {str(n): pairs(system, run, learned, all_loaded=n == MIDDLE) for n in (2, MIDDLE)}

        systems = [system for system in AVAILABLE if system.merge != "switching"]
        self._jobs("pairs", systems, SEEDS[0], measure)

    def drift(self) -> None:
        """What is left of images of other things."""
        self._jobs("drift", AVAILABLE, SEEDS[0], lambda system, run: drift(system, run, run.learn(MIDDLE)))

    def _measure(self, part: str, count: int, systems: list[System], seed: int) -> None:
        def measure(system: System, run: Run) -> dict:
            learned = run.learn(count)
            single = alone(run, learned)
            history = after(run, learned) if system.in_order else {}
            seconds = [concept.metrics["seconds"] for concept in learned]
            together = final(system, run, learned)
            single = together if system.merge == "words alone" else single  # no concept is there to be left out
            scores = {"final": together, "alone": single, "after": history}
            cost = costs(system, run, learned)
            pictures = f"{run.folder.name}/pictures/{final_sheet(system, learned)}"
            costs_of = {"training_seconds": seconds, "merge": cost}
            return {"seed": seed, "count": count, "scores": scores, **costs_of, "pictures": pictures}

        self._jobs(part, systems, seed, measure, f"-{count}-{seed}")

    def _jobs(
        self,
        part: str,
        systems: list[System],
        seed: int,
        measure: Callable[[System, Run], dict],
        suffix: str = "",
        open_run: Callable[[Recipe], Run] | None = None,
    ) -> None:
        open_run = open_run or (lambda recipe: self.run(recipe, seed))

        def do(system: System) -> None:
            path = self.shop.out / "results" / part / f"{slug(system.name)}{suffix}.json"
            if path.is_file():
                return
            try:
                run = open_run(system.recipe)
                write_json(path, {"system": system.name, **measure(self.tuning.tuned(system), run)})
                print(f"{part}: {path.stem} is done", flush=True)
            except (TrainingDiverged, TrainingExploded) as error:
                write_json(path, {"system": system.name, "failed": str(error)})

        folder = self.shop.out / "runs"
        run_jobs(
            [
                Job(system.name, folder / f".{system.recipe.name}-{seed}.lock", lambda system=system: do(system))
                for system in systems
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "tables"], default=list(PARTS), metavar="PART")
    parser.add_argument("--seeds", type=options.seed, nargs="+", default=list(SEEDS), metavar="SEED")
    parser.add_argument("--threads", type=options.count, default=1, help="threads of this process (%(default)s)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder for tables and figures")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(arguments.threads)
    shop = Workshop(load_base("mini", "cpu"), arguments.out)
    comparison = Comparison(shop, Tuning(shop), tuple(arguments.seeds))
    for part in arguments.only:
        if part in PARTS:
            getattr(comparison, part)()
    write_tables(arguments.out, arguments.results or arguments.out / "tables")


if __name__ == "__main__":
    main()
