"""Summarize scores: per concept, and as means with standard errors over the concepts."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .protocol import Score


@dataclass(frozen=True)
class Row:
    """The scores of one concept under one metric.

    If `concept` is empty, they are means over all concepts, with standard errors of the mean in the fields `*_sem`.
    """

    metric: str
    concept: str
    initial: float
    final: float
    forgetting: float
    initial_sem: float | None = None
    final_sem: float | None = None
    forgetting_sem: float | None = None


def summarize(scores: Sequence[Score]) -> list[Row]:
    """Return one row per metric and concept, and after those of a metric one row with means and SEMs (Appendix G)."""
    rows = []
    for metric in dict.fromkeys(score.metric for score in scores):
        of_metric = [score for score in scores if score.metric == metric]
        concepts = [_concept_row(metric, of_metric, name) for name in dict.fromkeys(s.concept for s in of_metric)]
        rows += [*concepts, _mean_row(metric, concepts)]
    return rows


def trajectory(scores: Sequence[Score], metric: str) -> dict[int, float]:
    """Average each stage over the concepts learned so far (Figure 3b), for stages at which all of them were scored."""
    stages: dict[int, list[float]] = {}
    for score in scores:
        if score.metric == metric:
            stages.setdefault(score.stage, []).append(score.value)
    return {stage: statistics.fmean(values) for stage, values in sorted(stages.items()) if len(values) == stage}


def sem(values: Sequence[float]) -> float | None:
    """Compute the standard error of the mean: the unbiased standard deviation over the root of the count.

    Returns:
        The standard error, or None for a single value.
    """
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def to_csv(scores: Sequence[Score]) -> str:
    """Format all scores as CSV, one score per line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["stage", "concept", "metric", "value"])
    writer.writerows([s.stage, s.concept, s.metric, f"{s.value:.6f}"] for s in scores)
    return out.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """Format a table as in the paper: mean ± SEM in the last row of each metric."""
    lines = ["| metric | concept | initial | final | forgetting |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = [
            _cell(row.initial, row.initial_sem),
            _cell(row.final, row.final_sem),
            _cell(row.forgetting, row.forgetting_sem),
        ]
        lines.append(f"| {row.metric} | {row.concept or '**mean ± SEM**'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _concept_row(metric: str, scores: Sequence[Score], concept: str) -> Row:
    own = sorted((score for score in scores if score.concept == concept), key=lambda score: score.stage)
    return Row(metric, concept, own[0].value, own[-1].value, own[0].value - own[-1].value)


def _mean_row(metric: str, rows: Sequence[Row]) -> Row:
    columns = [[getattr(row, column) for row in rows] for column in ("initial", "final", "forgetting")]
    means, errors = [statistics.fmean(column) for column in columns], [sem(column) for column in columns]
    return Row(metric, "", *means, *errors)
