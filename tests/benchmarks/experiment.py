"""The comparison of all methods on the mini base:  python tests/benchmarks/experiment.py --out DIR [--concepts N ...]

Every method learns the same concepts in the same order with the same number of forward-backward passes a concept;
a bank of 32 is a bank of 16 with 16 more, so one bank a method and seed serves all counts.  What is in DIR
already (banks and results) is not made again, so an interrupted run goes on.  Tables go to DIR/results.
"""

import argparse
import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqlora_core.bank import Bank, Concept
from seqlora_core.bank.names import default_token
from seqlora_core.bases import Base, load_base
from seqlora_core.composition import compose, select
from seqlora_core.config import TrainingConfig
from seqlora_core.encoding import encode_concept
from seqlora_core.evaluation.metrics import Identity, score
from seqlora_core.evaluation.tables import sem
from seqlora_core.fusion import FUSIONS, FusionSettings, fuse
from seqlora_core.fusion.from_base import BaseSource
from seqlora_core.generation import generate
from seqlora_core.images import Reference, template_prompts
from seqlora_core.mini import MiniConcept, mini_concepts
from seqlora_core.plan import ConceptSpec
from seqlora_core.terminal import TerminalMonitor, quiet_libraries
from seqlora_core.trainer import train_concept

PASSES = 600  # forward and backward, a concept
PASSES_A_STEP = {"seqlora": 3, "alternating": 2, "orthogonal": 1, "inflora": 1, "lora": 1}
SETTINGS = {"rank": 2, "batch_size": 4, "resolution": 32}
PICTURES, SAMPLER_STEPS, GUIDANCE = 16, 25, 4.0


@dataclass(frozen=True)
class System:
    """A training method with settings, and how its concepts are put together."""

    name: str
    method: str
    settings: tuple[tuple[str, object], ...] = ()
    fusion: str = "sum"

    @property
    def training(self) -> str:
        """Names the bank; systems that differ in the fusion alone share one."""
        return "-".join([self.method, *(f"{key}={value}" for key, value in self.settings)])


SYSTEMS = (
    System("SeqLoRA", "seqlora"),
    System("Continual Alternating", "alternating"),
    System("Orthogonal Adaptation", "orthogonal"),
    System("InfLoRA", "inflora"),
    System("LoRA, summed", "lora"),
    System("LoRA, averaged", "lora", fusion="weighted-average"),
    System("Mix-of-Show (gradient fusion)", "lora", fusion="gradient-fusion"),
    System("LoRACLR", "lora", fusion="loraclr"),
    System("Custom Diffusion", "lora", fusion="custom-diffusion"),
)


class Experiment:
    """One seed of it."""

    def __init__(self, base: Base, out: Path, seed: int) -> None:
        self.base, self.out, self.seed = base, out, seed
        self.concepts = mini_concepts()
        self.monitor = TerminalMonitor()

    def learn(self, system: System, count: int) -> Bank:
        """The bank of a system's first `count` concepts."""
        bank = Bank.open_or_create(
            self.out / "banks" / f"{system.training}-{self.seed}", self.base.identity, self.base.layers
        )
        for concept in self.concepts[len(bank.concepts) : count]:
            self._train(bank, system, concept)
        return bank

    def measure(self, system: System, count: int) -> dict:
        """Identity right after training and in the end, a mean and SEM over the concepts."""
        path = self.out / "results" / f"{_file_name(system.name)}-{count}-{self.seed}.json"
        if path.is_file():
            return json.loads(path.read_text("utf-8"))
        bank = self.learn(system, count)
        learned = bank.concepts[:count]
        alone = system.fusion != "sum"  # a fusion has no history: each concept is as good as it is without the others
        initial = [self._score(bank, c, [c] if alone else learned[: i + 1]) for i, c in enumerate(learned)]
        adapters, seconds, megabytes = self._put_together(bank, system, learned)
        final = [self._score_adapters(concept, adapters) for concept in learned]
        single = [self._score(bank, concept, [concept]) for concept in learned]
        result = {
            "system": system.name,
            "concepts": count,
            "seed": self.seed,
            **_columns("single", single),
            **_columns("initial", initial),
            **_columns("final", final),
            **_columns("forgetting", [before - after for before, after in zip(initial, final, strict=True)]),
            "training_seconds": statistics.fmean(concept.metrics["seconds"] for concept in learned),
            "fusion_seconds": seconds,
            "fusion_megabytes": megabytes,
            "each": {c.name: values for c, *values in zip(learned, initial, final, strict=True)},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        return result

    def _train(self, bank: Bank, system: System, concept: MiniConcept) -> None:
        spec = ConceptSpec(concept.name, default_token(concept.name), concept.class_word)
        steps = PASSES // PASSES_A_STEP[system.method]
        settings = {**SETTINGS, "method": system.method, "steps": steps, "seed": self.seed, **dict(system.settings)}
        config = TrainingConfig(**settings)
        references = [Reference(p, template_prompts(spec.subject), concept.name) for p in concept.references]
        print(f"{system.training}: {concept.name}", flush=True)
        train_concept(self.base.denoiser(), encode_concept(self.base, references, config), bank, spec, config)

    def _put_together(self, bank: Bank, system: System, learned: Sequence[Concept]):
        parts = select(bank, [(concept.name, 1.0) for concept in learned])
        fusion, settings = FUSIONS[system.fusion], FusionSettings()
        source = BaseSource(self.base, settings) if fusion.reads_base else None
        fused = fuse(fusion, parts, settings, source)
        return fused.adapters, fused.seconds, fused.peak_bytes / 2**20

    def _score(self, bank: Bank, concept: Concept, parts: Sequence[Concept]) -> float:
        return self._score_adapters(concept, compose(bank, [(part.name, 1.0) for part in parts]))

    def _score_adapters(self, concept: Concept, adapters) -> float:
        pictures = generate(
            self.base,
            f"photo of a {concept.token} {concept.class_word}",
            adapters,
            seed=self.seed * PICTURES,
            steps=SAMPLER_STEPS,
            size=self.base.native_size,
            guidance=GUIDANCE,
            count=PICTURES,
        )
        references = next(c.references for c in self.concepts if c.name == concept.name)
        return score(Identity(), pictures, references, "")


def _columns(name: str, values: Sequence[float]) -> dict:
    return {name: statistics.fmean(values), f"{name}_sem": sem(values)}


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in name.lower()).strip("-")


def write_tables(results: Sequence[dict], folder: Path) -> None:
    """`table.csv` with all columns and `table.md` with those of the paper's Tables 1 and 3."""
    columns = [column for column in results[0] if column != "each"]
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)
    lines = ["| concepts | seed | system | single | right after training | in the end | forgetting |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for result in results:
        cells = [_cell(result, column) for column in ("single", "initial", "final", "forgetting")]
        lines.append(f"| {result['concepts']} | {result['seed']} | {result['system']} | {' | '.join(cells)} |")
    (folder / "table.md").write_text("\n".join(lines) + "\n", "utf-8")


def _cell(result: dict, column: str) -> str:
    return f"{result[column]:.3f} ± {result[f'{column}_sem']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--concepts", type=int, nargs="+", default=[8, 16, 32, 48], metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--systems", nargs="+", default=[system.name for system in SYSTEMS], metavar="NAME")
    args = parser.parse_args()
    quiet_libraries()
    base = load_base("mini", "cpu")
    results = []
    for count in args.concepts:
        for seed in args.seeds:
            experiment = Experiment(base, args.out, seed)
            for system in SYSTEMS:
                if system.name in args.systems:
                    results.append(experiment.measure(system, count))
                    write_tables(results, args.out / "results")
                    print(f"{count} concepts, {system.name}: {_cell(results[-1], 'final')}", flush=True)


if __name__ == "__main__":
    main()
