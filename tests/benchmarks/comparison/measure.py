"""The scores of a system with the first concepts of a run: right after training, in the end, alone, and in between."""

from collections.abc import Sequence
from statistics import fmean

from seqlora_core.bank import Concept
from seqlora_core.bank.names import slug
from seqlora_core.model.adapters import sum_adapters

from .recipes import System
from .runs import Run, put_together

STAGES = (1, 4, 8, 16, 32, 48)  # numbers of concepts after which all learned so far are scored


def measure(system: System, run: Run, count: int, trajectory: bool = False) -> dict:
    """Measure the scores of every concept, and the costs.

    Args:
        trajectory: add the mean over the concepts learned so far after each of `STAGES`, if the system has a history.
    """
    learned = run.learn(count)
    single = {concept.name: alone(run, concept) for concept in learned}
    initial = single
    if system.sequential:
        initial = {c.name: after(run, learned[: i + 1], [c])[c.name] for i, c in enumerate(learned)}
    sheet = final_sheet(system, run, learned)
    stages = [stage for stage in STAGES if stage < count] if trajectory and system.sequential else []
    means = {stage: fmean(after(run, learned[:stage], learned[:stage]).values()) for stage in stages}
    return {
        "system": system.name,
        "concepts": count,
        "seed": run.config.seed,
        "scores": {
            "single": single,
            "initial": initial,
            "final": {concept.name: sheet["scores"][concept.name] for concept in learned},
        },
        "trajectory": {**means, count: fmean(sheet["scores"][c.name] for c in learned)} if stages else {},
        "layers_skipped": {concept.name: len(concept.layers_skipped) for concept in learned},
        "training_seconds": fmean(concept.metrics["seconds"] for concept in learned),
        "passes": fmean(concept.metrics["passes"] for concept in learned),
        "fusion_seconds": sheet.get("fusion_seconds", 0.0),
        "fusion_megabytes": sheet.get("fusion_megabytes", 0.0),
        "run": run.folder.name,
        "settings": run.config.as_dict(),
    }


def alone(run: Run, concept: Concept) -> float:
    """Score a concept with no other one in place."""
    sheet = run.sheet(alone_name(concept.name), [concept], lambda: (_sum(run, [concept]), {}))
    return sheet["scores"][concept.name]


def after(run: Run, stage: Sequence[Concept], asked: Sequence[Concept]) -> dict[str, float]:
    """Score some concepts in the sum of those that had been learned by a stage."""
    sheet = run.sheet(stage_name(len(stage)), asked, lambda: (_sum(run, stage), {}))
    return {concept.name: sheet["scores"][concept.name] for concept in asked}


def final_sheet(system: System, run: Run, learned: Sequence[Concept]) -> dict:
    """Score all concepts of a system together; record what putting them together cost."""
    if system.sequential:
        return run.sheet(stage_name(len(learned)), learned, lambda: (_sum(run, learned), {}))
    return run.sheet(
        final_name(system, len(learned)),
        learned,
        lambda: put_together(run.base, system, run.selected(learned, system.strength)),
    )


def final_name(system: System, count: int) -> str:
    """Name the sheet of a system's images in the end."""
    return stage_name(count) if system.sequential else f"{system.composition}/{count:03d}"


def stage_name(stage: int) -> str:
    """Name the sheet of the sum of a run's first concepts."""
    return f"after/{stage:03d}"


def alone_name(concept: str) -> str:
    """Name the sheet of a concept that was sampled with no other one in place."""
    return f"alone/{slug(concept)}"


def _sum(run: Run, concepts: Sequence[Concept]):
    return sum_adapters([(one.adapters, one.strength) for one in run.selected(concepts)])
