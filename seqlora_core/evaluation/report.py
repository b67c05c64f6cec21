"""Write the files of an evaluation: scores, tables, the trajectory, and a grid of images in training order."""

import dataclasses
import json
from collections.abc import Sequence

from PIL import Image

from ..plots import image_grid, line_chart
from .protocol import Evaluation, Score
from .tables import Row, summarize, to_csv, to_markdown, trajectory

_GRID_STAGES = 4


def write_report(evaluation: Evaluation, scores: Sequence[Score]) -> list[Row]:
    """Write `scores.csv`, `report.json`, `report.md` and `grid.png` into the evaluation's folder.

    If all stages are scored, write `trajectory.png` too.

    Returns:
        The rows of the table.
    """
    out, rows = evaluation.folder, summarize(scores)
    curves = {metric: trajectory(scores, metric) for metric in dict.fromkeys(score.metric for score in scores)}
    total = len(evaluation.bank.concepts)
    (out / "scores.csv").write_text(to_csv(scores), "utf-8")
    (out / "report.md").write_text(to_markdown(rows), "utf-8")
    document = {
        "bank": str(evaluation.bank.folder),
        "base": evaluation.base.identity.name,
        "drawing": {
            "prompt": evaluation.settings.prompt,
            "own_words": evaluation.settings.own_words,
            **({"prompts": dict(evaluation.prompts)} if evaluation.prompts else {}),
            **dataclasses.asdict(evaluation.settings.sampling),
        },
        "rows": [dataclasses.asdict(row) for row in rows],
        "trajectory": curves,
    }
    (out / "report.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if all(len(curve) == total for curve in curves.values()):
        values = {metric: list(curve.values()) for metric, curve in curves.items()}
        line_chart(values).save(out / "trajectory.png", optimize=True)
    _grid(evaluation, scores).save(out / "grid.png", optimize=True)
    return rows


def _grid(evaluation: Evaluation, scores: Sequence[Score]) -> Image.Image:
    """Draw one row per concept in training order and one column for each of some stages (Figure 2), all of one seed."""
    concepts = evaluation.bank.concepts
    scored = {(score.stage, score.concept) for score in scores}
    complete = [s for s in range(1, len(concepts) + 1) if all((s, c.name) in scored for c in concepts[:s])]
    stages = sorted({complete[round(i * (len(complete) - 1) / (_GRID_STAGES - 1))] for i in range(_GRID_STAGES)})
    rows = []
    for number, concept in enumerate(concepts, start=1):
        groups = [list(evaluation.references[concept.name][:1]), evaluation.images(number, concept)[:1]]
        groups += [evaluation.images(stage, concept)[:1] if stage >= number else [] for stage in stages]
        rows.append((concept.name, groups))
    titles = ["reference", "when learned", *(f"after {stage}" for stage in stages)]
    return image_grid(titles, rows)
