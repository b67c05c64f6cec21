"""All tables and charts of the results that an experiment has so far."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from seqlora_core.mini import MiniConcept
from seqlora_core.plots import crosstalk_map, image_grid

from . import charts, tables
from .measure import STAGES, alone_name, final_name, stage_name
from .prompt_similarity import nearest_prompts, prompt_similarity
from .recipes import OURS, SYSTEMS
from .runs import stored_images
from .sections import MIDDLE, SECTIONS, Experiment, read_results
from .summary import Table, summarize
from .tuning import ALONE

_CELL = 56  # side of an image in a grid, in pixels
_LEAST_FORECAST = 1e-6

Results = dict[str, list[dict]]


def write_report(experiment: Experiment, folder: Path) -> None:
    """Write `report.md`, a CSV file for each table, and the charts."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {section: read_results(experiment.out, section) for section in ("plain", *SECTIONS)}
    choices = experiment.tuning.choices()
    made = _tables(experiment, results, choices)
    for table in made:
        (folder / f"{table.name}.csv").write_text(table.to_csv(), "utf-8")
    scope = experiment.scope
    head = (
        f"Concepts of the mini base; layers: {scope.layers}; {scope.passes} forward-backward passes a concept; step "
        f"sizes chosen on {scope.tuning_concepts} concepts beyond the 32nd, twice as many where these do not decide; "
        f"of LoRAs that fusions start from on {min(ALONE, scope.tuning_concepts)} of them, each alone.\n"
    )
    (folder / "report.md").write_text("\n".join([head, *(table.to_markdown() for table in made)]), "utf-8")
    for name, image in _charts(experiment, results).items():
        image.save(folder / f"{name}.png", optimize=True)


def _tables(experiment: Experiment, results: Results, choices: Sequence[dict]) -> list[Table]:
    made = []
    if results["main"]:
        summaries = summarize(results["main"])
        plain = results["plain"][0]["scores"]["final"] if results["plain"] else {}
        made.append(tables.overview(summaries, MIDDLE, plain))
        made += [tables.comparison(summaries, count, plain) for count in tables.counts(summaries)]
        made += [tables.forgetting(summaries), tables.scale(summaries), tables.target(summaries)]
        pairs = tables.beside_single(summaries)
        made += [prompt_similarity(pairs, nearest_prompts(experiment.base, experiment.concepts))] if pairs else []
    if results["order"]:
        made.append(tables.orders(results["order"], results["main"]))
    if results["rivals"]:
        made.append(tables.rivals(results["rivals"], results["main"]))
    others = {"ablation": tables.ablation, "choices": lambda found: tables.contested(found, choices)}
    others |= {"defaults": tables.defaults, "subsets": tables.subsets}
    others |= {"others": tables.base_drift, "saturation": tables.saturation, "forecast": tables.forecasts}
    made += [table(results[section]) for section, table in others.items() if results[section]]
    return [*made, tables.tuning(choices)]


def _charts(experiment: Experiment, results: Results) -> dict[str, Image.Image]:
    made = {}
    if results["main"]:
        made |= _main_charts(results["main"])
        made |= _grids(experiment, results["main"])
    if results["forecast"]:
        found = {result["system"]: _forecast_points(result) for result in results["forecast"]}
        series = {system.name: found[system.name] for system in SYSTEMS if system.name in found}
        made["forecast"] = charts.scatter(series, "forecast crosstalk, power of ten", "measured forgetting")
        for result in results["forecast"]:
            if result["system"] == OURS:
                made["crosstalk"] = crosstalk_map(list(result["crosstalk"]), list(result["crosstalk"].values()))
    for result in results["saturation"]:
        made["saturation"] = charts.curves(_by_place(result), "place in the order of training", "identity")
    return made


def _main_charts(results: Sequence[dict]) -> dict[str, Image.Image]:
    """Figures 3a and 3b."""
    made, summaries = {}, summarize(results)
    by_count = {count: tables.of_count(summaries, count) for count in tables.counts(summaries)}
    if len(by_count) > 1:
        series = {
            system.name: [
                (count, s[system.name].mean("final").value) for count, s in by_count.items() if system.name in s
            ]
            for system in SYSTEMS
        }
        series = {name: points for name, points in series.items() if points}
        made["counts"] = charts.curves(series, "number of concepts", "identity in the end (Figure 3a)")
    longest = {}
    for result in sorted(results, key=lambda result: result["concepts"]):
        if result["trajectory"]:
            longest[result["system"]] = [(int(stage), mean) for stage, mean in result["trajectory"].items()]
    if longest:
        series = {system.name: longest[system.name] for system in SYSTEMS if system.name in longest}
        made["trajectory"] = charts.curves(series, "concepts learned", "identity of all learned so far (Figure 3b)")
    return made


def _grids(experiment: Experiment, results: Sequence[dict]) -> dict[str, Image.Image]:
    """Images of the first concepts, in training order: as more were learned, and with each system (Figure 2)."""
    seed = min(result["seed"] for result in results)
    runs = {
        (result["system"], result["concepts"]): experiment.out / "runs" / result["run"]
        for result in results
        if result["seed"] == seed
    }
    concepts, made = experiment.concepts[:MIDDLE], {}
    ours = max((key for key in runs if key[0] == OURS), default=None)
    if ours:
        stages = [stage for stage in STAGES if stage <= ours[1] and stage >= 4]
        columns = {"alone": alone_name, "learned": lambda name: stage_name(_place(concepts, name))}
        columns |= {f"after {stage}": lambda _, stage=stage: stage_name(stage) for stage in stages}
        made["history"] = _grid(concepts, {title: (runs[ours], sheet) for title, sheet in columns.items()})
    finals = {
        system.short or system.name: (runs[system.name, MIDDLE], lambda _, s=system: final_name(s, MIDDLE))
        for system in SYSTEMS
        if (system.name, MIDDLE) in runs
    }
    if finals:
        made["systems"] = _grid(concepts, finals)
    return {name: grid for name, grid in made.items() if grid is not None}


def _grid(concepts: Sequence[MiniConcept], columns: dict) -> Image.Image | None:
    """Lay out the stored images; None if there are none, as after continuing from an archive.

    Args:
        columns: title -> (folder of the run, function from a concept's name to its sheet).
    """
    rows = []
    for concept in concepts:
        drawn = [stored_images(folder, sheet(concept.name), concept.name) for folder, sheet in columns.values()]
        rows.append((concept.name, [list(concept.references[:1]), *(images[:1] for images in drawn)]))
    if not any(images for _, (_, *drawn) in rows for images in drawn):
        return None
    return charts.few_colours(image_grid(["reference", *columns], rows, cell=_CELL))


def _place(concepts: Sequence[MiniConcept], name: str) -> int:
    return 1 + [concept.name for concept in concepts].index(name)


def _forecast_points(result: dict) -> list[tuple[float, float]]:
    expected = result["forecast"].items()
    return [(math.log10(max(value, _LEAST_FORECAST)), result["forgetting"][name]) for name, value in expected]


def _by_place(result: dict) -> dict[str, list[tuple[float, float]]]:
    lines = {"right after training": "initial", "in the end": "final", "alone": "single"}
    return {title: list(enumerate(result["scores"][key].values(), start=1)) for title, key in lines.items()}
