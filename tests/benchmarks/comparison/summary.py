"""From results to tables: per-concept means over seeds, then mean and standard error over concepts (Appendix G)."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from seqlora_core.evaluation.tables import sem

MEASURES = ("single", "initial", "final")


class Mean(NamedTuple):
    """A mean over concepts with its standard error."""

    value: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        return cls(fmean(values), sem(values))

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.error is None else f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Summary:
    """One system with one number of concepts, over all its seeds.

    Attributes:
        each: measure -> concept -> the mean over seeds; the measures are single, initial, final and forgetting.
        costs: of a training run and of the fusion, the mean over seeds.
    """

    system: str
    concepts: int
    seeds: tuple[int, ...]
    each: Mapping[str, Mapping[str, float]]
    costs: Mapping[str, float]

    def mean(self, measure: str) -> Mean:
        """The mean over the concepts."""
        return Mean.of(list(self.each[measure].values()))

    def lead(self, other: "Summary", measure: str = "final") -> Mean:
        """The lead over another summary, taken concept by concept."""
        own, others = self.each[measure], other.each[measure]
        return Mean.of([own[name] - others[name] for name in own])


def summarize(results: Sequence[dict]) -> list[Summary]:
    """Summarize the results of each system and number of concepts."""
    groups: dict[tuple[int, str], list[dict]] = {}
    for result in results:
        groups.setdefault((result["concepts"], result["system"]), []).append(result)
    return [_summary(system, count, group) for (count, system), group in groups.items()]


def _summary(system: str, count: int, results: Sequence[dict]) -> Summary:
    each = {
        measure: {name: fmean(r["scores"][measure][name] for r in results) for name in results[0]["scores"][measure]}
        for measure in MEASURES
    }
    each["forgetting"] = {name: each["initial"][name] - each["final"][name] for name in each["initial"]}
    keys = ("training_seconds", "fusion_seconds", "fusion_megabytes")
    costs = {key: fmean(result[key] for result in results) for key in keys}
    return Summary(system, count, tuple(sorted(result["seed"] for result in results)), each, costs)


Cell = str | int | float | Mean


@dataclass(frozen=True)
class Table:
    """A table that is written as CSV and as Markdown.

    Attributes:
        name: the name of its file, without the ending.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def to_markdown(self) -> str:
        """Format it as Markdown, with a heading."""
        lines = [f"### {self.caption}", "", _line(self.columns), _line("---" for _ in self.columns)]
        return "\n".join([*lines, *(_line(map(_text, row)) for row in self.rows)]) + "\n"

    def to_csv(self) -> str:
        """Format it as CSV; a column of means becomes two, the mean and its standard error."""
        has_error = [any(isinstance(row[i], Mean) for row in self.rows) for i in range(len(self.columns))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for row in [[(column, f"{column} SEM") for column in self.columns], *self.rows]:
            cells = zip(row, has_error, strict=True)
            writer.writerow([value for cell, error in cells for value in _values(cell)[: 1 + error]])
        return out.getvalue()


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Cell) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def _values(cell: Cell | tuple[str, str]) -> tuple:
    """The text of a cell for the column of its mean, and for that of the standard error."""
    if isinstance(cell, Mean):
        return f"{cell.value:.6f}", "" if cell.error is None else f"{cell.error:.6f}"
    if isinstance(cell, tuple):
        return cell
    return f"{cell:.6g}" if isinstance(cell, float) else cell, ""


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, where equal values share their rank; 0 if one side does not vary."""
    x, y = _ranks(first), _ranks(second)
    mean_x, mean_y = fmean(x), fmean(y)
    product = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    scale = (sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)) ** 0.5
    return product / scale if scale else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]
