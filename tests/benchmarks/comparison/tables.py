"""The tables and figures of the results so far."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from seqlora_core.bank.names import slug
from seqlora_core.mini import mini_concepts

from .figures import draw_grid, draw_growth
from .measure import SELECTED
from .recipes import ABLATION, DEFAULTS, SYSTEMS
from .runs import read_json
from .statistics import Scores, paired

OURS = SYSTEMS[0].name
MIDDLE, LARGER, SHOWN = 16, (32, 48), 12


@dataclass(frozen=True)
class Table:
    """A table with a title; cells are texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"## {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


class Results:
    """What has been measured so far, by part and system."""

    def __init__(self, out: Path) -> None:
        self.records: dict[str, list[dict]] = {}
        for path in sorted((out / "results").glob("*/*.json")):
            self.records.setdefault(path.parent.name, []).append(read_json(path))

    def of(self, part: str, system: str, count: int | None = None) -> list[dict]:
        """The records of a system that did not fail, by seed."""
        return [
            record
            for record in self.records.get(part, [])
            if record["system"] == system and "failed" not in record and count in (None, record.get("count"))
        ]

    def scores(self, part: str, system: str, kind: str = "final", count: int | None = MIDDLE) -> Scores:
        """The scores of a kind, by seed and concept, with so many concepts; None for whatever their number is."""
        records = self.of(part, system, count)
        return {(record["seed"], name): s for record in records for name, s in record["scores"][kind].items()}


def write_tables(out: Path, folder: Path) -> None:
    """Write `report.md`, a CSV file per table, `scores.csv` with the score of every concept, and the figures."""
    results = Results(out)
    tables = {
        "main": main_table(results),
        "counts": counts_table(results),
        "ablation": ablation_table(results),
        "defaults": defaults_table(results),
        "several": several_table(results),
        "tuning": tuning_table(out),
    }
    tables = {name: table for name, table in tables.items() if table.rows}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in {**tables, "scores": scores_table(results)}.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([table.columns, *table.rows])
    report = "\n".join(table.markdown() for table in tables.values())
    (folder / "report.md").write_text(f"# Results\n\n{report}", encoding="utf-8", newline="\n")
    draw_growth(_growth(results), folder)
    pictures = _pictures(results, out)
    if pictures:
        drawn = {path.stem for path in next(iter(pictures.values())).glob("*.png")}
        concepts = {slug(own.name): own.references[0] for own in mini_concepts() if slug(own.name) in drawn}
        draw_grid(pictures, dict(list(concepts.items())[:SHOWN]), folder / "grid.png")


def main_table(results: Results) -> Table:
    """Every system with 16 concepts."""
    ours = results.scores("main", OURS)
    rows = []
    for system in SYSTEMS:
        records = results.of("main", system.name, MIDDLE)
        if not records:
            continue
        final, single, after = (results.scores("main", system.name, kind) for kind in ("final", "alone", "after"))
        merges = [record["merge"] for record in records if record["merge"]]
        rows.append(
            [
                system.name,
                str(len(records)),
                _mean(final),
                *_against(final, ours, system.name == OURS),
                _mean(after),
                _mean(single),
                _forgetting(after, final),
                system.needs,
                f"{fmean(second for record in records for second in record['training_seconds']):.0f}",
                f"{fmean(merge['seconds'] for merge in merges):.0f}" if merges else "-",
                f"{fmean(merge['megabytes'] for merge in merges):.0f}" if merges else "-",
            ]
        )
    columns = ["system", "seeds", "final of 16", "minus ours [95 %]", "beats ours in", "right after training", "alone"]
    columns += ["forgotten", "needs at merge time", "training, s per concept"]
    return Table("Main table", [*columns, "merge, s", "merge, MB"], rows)


def counts_table(results: Results) -> Table:
    """The systems that were trained with more concepts: 32, and 48 with one seed."""
    ours, rows = {count: results.scores("main", OURS, count=count) for count in LARGER}, []
    for system in SYSTEMS:
        final = {count: results.scores("main", system.name, count=count) for count in LARGER}
        if not any(final.values()):
            continue
        cells = [str(len(results.of("main", system.name, LARGER[0])))]
        for count in LARGER:
            after = results.scores("main", system.name, "after", count)
            difference, _ = _against(final[count], ours[count], system.name == OURS)
            cells += [_mean(final[count]), difference, _forgetting(after, final[count])]
        rows.append([system.name, *cells])
    columns = [f"{what} of {n}" for n in LARGER for what in ("final", "minus ours [95 %]", "forgotten")]
    return Table("More concepts", ["system", "seeds of 32", *columns], rows)


def ablation_table(results: Results) -> Table:
    """One part of SeqLoRA left out, and parts of it offered to others."""
    ours = results.scores("ablation", ABLATION[0][0])
    rows = []
    for name, _ in ABLATION:
        records = results.of("ablation", name, MIDDLE)
        if not records:
            continue
        final, single, after = (results.scores("ablation", name, kind) for kind in ("final", "alone", "after"))
        compared = _against(final, ours, name == ABLATION[0][0])
        rows.append(
            [name, str(len(records)), _mean(final), *compared, _mean(after), _mean(single), _forgetting(after, final)]
        )
    columns = ["changed", "seeds", "final of 16", "minus ours [95 %]", "beats ours in", "right after training", "alone"]
    return Table("Ablation", [*columns, "forgotten"], rows)


def defaults_table(results: Results) -> Table:
    """The defaults of `train` and their neighbours, on the concepts that settings are chosen on; one seed."""
    unchanged, rows = results.scores("defaults", DEFAULTS[0][0], count=None), []
    for name, _ in DEFAULTS:
        final, after, single = (results.scores("defaults", name, kind, None) for kind in ("final", "after", "alone"))
        if final:
            difference, _ = _against(final, unchanged, name == DEFAULTS[0][0])
            rows.append([name, _mean(final), difference, _mean(after), _mean(single)])
    columns = ["changed", "final of 8", "minus the default's [95 %]", "right after training", "alone"]
    return Table("Defaults of train", columns, rows)


def several_table(results: Results) -> Table:
    """Selections of 32, two in one image, and images of other things; one seed."""
    ours, rows = _scores_of_selections(results, OURS), []
    for system in SYSTEMS:
        chosen, pairs, drift = (_first(results.of(part, system.name)) for part in ("selections", "pairs", "drift"))
        if chosen or pairs or drift:
            selected = [f"{fmean(chosen[str(size)]):.3f}" if chosen else "-" for size in SELECTED]
            difference, _ = _against(_scores_of_selections(results, system.name), ours, system.name == OURS)
            two = [_pairs(pairs.get(loaded)) for loaded in ("2", "16")]
            others = [f"{drift[count]:.2f}" if drift else "-" for count in ("1", "4", "16")]
            rows.append([system.name, *selected, difference, *two, *others])
    columns = ["system", *(f"{size} of 32" for size in SELECTED), "these minus ours [95 %]"]
    columns += ["two in one image: look-alikes / others", "with all 16 loaded"]
    columns += [f"other things, {count} loaded" for count in (1, 4, 16)]
    return Table("Selections, several concepts in one image, and other things", columns, rows)


def _scores_of_selections(results: Results, system: str) -> Scores:
    """The mean score of each selection."""
    found = _first(results.of("selections", system))
    return {(0, f"{size} {i}"): score for size in SELECTED for i, score in enumerate(found.get(str(size), []))}


def scores_table(results: Results) -> Table:
    """The scores of every concept, from which the intervals can be computed again."""
    kinds, rows = ("final", "after", "alone"), []
    for part in ("main", "ablation", "defaults"):
        for record in results.records.get(part, []):
            for concept in record.get("scores", {}).get("final", {}):
                scores = (str(record["scores"][kind].get(concept, "")) for kind in kinds)
                rows.append([part, record["system"], str(record["seed"]), str(record["count"]), concept, *scores])
    return Table("Scores", ["part", "system", "seed", "concepts", "concept", *kinds], rows)


def tuning_table(out: Path) -> Table:
    """All trials of step sizes and strengths, and what was chosen."""
    rows = []
    for path in sorted((out / "tuning").glob("*.json")):
        record = read_json(path)
        chosen = record.get("step_size", record.get("strength"))
        for value, score in record["trials"]:
            note = "chosen, at the bound" if record.get("at_bound") else "chosen"
            rows.append([path.stem, f"{value:g}", f"{score:.3f}", note if value == chosen else ""])
    return Table("Step sizes and strengths", ["tuned", "value", "score", ""], rows)


def _growth(results: Results) -> dict[str, dict[int, float]]:
    """The mean final score by the number of concepts, of every system that has it; first seed."""
    growth: dict[str, dict[int, float]] = {}
    for system in SYSTEMS:
        few = _first(results.of("growth", system.name))
        points = {int(count): value for count, value in few.items() if count.isdecimal()}
        for record in results.of("main", system.name):
            if record["seed"] == 0:
                points[record["count"]] = fmean(record["scores"]["final"].values())
        if few:
            growth[system.name] = dict(sorted(points.items()))
    return growth


def _pictures(results: Results, out: Path) -> dict[str, Path]:
    """The folder of every system's images with all 16 concepts, first seed, where it has one."""
    folders = {}
    for system in SYSTEMS:
        for record in results.of("main", system.name, MIDDLE):
            folder = out / "runs" / record["pictures"]
            if record["seed"] == 0 and folder.is_dir():
                folders[system.name] = folder
    return folders


def _first(records: list[dict]) -> dict:
    return records[0] if records else {}


def _pairs(found: dict | None) -> str:
    return f"{fmean(found['look-alikes']):.3f} / {fmean(found['others']):.3f}" if found else "-"


def _mean(scores: Scores) -> str:
    return f"{fmean(scores.values()):.3f}" if scores else "-"


def _against(scores: Scores, ours: Scores, same: bool) -> list[str]:
    """The difference to ours, and in how many pairs it is positive."""
    difference = None if same else paired(scores, ours)
    return [str(difference), f"{difference.wins} of {difference.pairs}"] if difference else ["-", "-"]


def _forgetting(after: Scores, final: Scores) -> str:
    return f"{fmean(after[key] - final[key] for key in after):.3f}" if after else "-"
