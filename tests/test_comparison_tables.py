"""The experiment's tables: each with a known answer, and all of them remade from the published scores."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seqlora_core.bank import BaseIdentity
from seqlora_core.mini import MiniConcept
from seqlora_core.model.base import load_base
from seqlora_core.monitor import Monitor
from tests.benchmarks.comparison import archive, records, tables
from tests.benchmarks.comparison.prompt_similarity import nearest_prompts, prompt_similarity
from tests.benchmarks.comparison.recipes import CHANGED_RIVALS, CONTESTED, INFLORA, OURS, RIVAL, SYSTEMS
from tests.benchmarks.comparison.report import write_report
from tests.benchmarks.comparison.sections import Experiment, Scope
from tests.benchmarks.comparison.summary import Mean, Table, correlation, summarize

RESULTS = Path(__file__).parent / "benchmarks" / "results"
FROZEN = next(system.name for system in SYSTEMS if system.recipe == INFLORA)
AVERAGED = next(system.name for system in SYSTEMS if system.fusion == "weighted-average")
CONTRASTED = next(system.name for system in SYSTEMS if system.fusion == "loraclr")


def result(system: str, initial: list[float], final: list[float], seed: int = 0, single: float = 0.9) -> dict:
    names = ["dog", "cat", "bag", "car"][: len(final)]
    scores = {"single": dict.fromkeys(names, single)}
    scores |= {"initial": dict(zip(names, initial, strict=True)), "final": dict(zip(names, final, strict=True))}
    costs = {"training_seconds": 2.0, "passes": 600, "fusion_seconds": 0.0, "fusion_megabytes": 0.0}
    return {"system": system, "concepts": len(final), "seed": seed, "scores": scores, **costs}


def test_seeds_are_averaged_per_concept_before_the_standard_error():
    [summary] = summarize([result(OURS, [0.8, 0.6], [0.7, 0.5]), result(OURS, [0.6, 0.6], [0.5, 0.3], seed=1)])
    assert summary.seeds == (0, 1)
    assert summary.each["final"] == pytest.approx({"dog": 0.6, "cat": 0.4})
    assert summary.mean("final") == pytest.approx((0.5, 0.1))
    assert summary.mean("forgetting") == pytest.approx((0.15, 0.05))


def test_a_lead_is_taken_concept_by_concept():
    ours, theirs = summarize([result(OURS, [0.9] * 3, [0.9, 0.5, 0.1]), result(FROZEN, [0.9] * 3, [0.8, 0.4, 0])])
    assert ours.lead(theirs) == pytest.approx((0.1, 0.0), abs=1e-9)


def goals(*results: dict) -> list[tuple]:
    """Of every goal: what was measured, the limit, and whether it is met."""
    return [(row[-3].value, row[-2], row[-1]) for row in tables.target(summarize(results)).rows]


def test_every_goal_is_met_or_not_by_its_own_limit():
    ours = result(OURS, [0.96, 0.86], [0.88, 0.78])
    rival = result(RIVAL, [0.9, 0.8], [0.70, 0.60])
    averaged = result(AVERAGED, [0.9, 0.9], [0.87, 0.77], single=0.9)
    close = pytest.approx
    assert goals(ours, rival, averaged) == [
        (close(0.18), close(0.05), "yes"),  # the lead over the rival is more than the standard error of ours
        (close(0.01), close(0.05), "no"),  # that over averaged LoRAs is not
        (close(0.08), close(0.1), "yes"),  # forgetting: at most half of the rival's
        (close(0.91), close(0.9), "yes"),  # right after training: that of a LoRA alone
        (close(0.83), close(0.9), "no"),  # in the end likewise
    ]


def test_a_lead_within_its_own_standard_error_does_not_count():
    lead, *_ = goals(result(OURS, [0.5] * 2, [0.5, 0.5]), result(RIVAL, [0.5] * 2, [0.1, 0.6]))
    assert lead == (pytest.approx(0.15), pytest.approx(0.25), "no")


def test_the_comparison_has_the_systems_in_order_then_the_references():
    results = [result(name, [0.9, 0.9], [0.8, 0.6]) for name in (AVERAGED, OURS)]
    table = tables.comparison(summarize(results), 2, {"dog": 0.2, "cat": 0.4, "car": 0.0})
    assert [row[0] for row in table.rows[:2]] == [OURS, AVERAGED]
    assert [row[1].value for row in table.rows] == pytest.approx([0.7, 0.7, 0.9, 0.3])
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_overview_adds_final_scores_of_other_numbers_of_concepts():
    results = [result(name, [0.9] * 4, [0.8, 0.6, 0.4, 0.2]) for name in (OURS, AVERAGED)]
    results.append(result(OURS, [0.9] * 2, [0.8, 0.6]))
    table = tables.overview(summarize(results), 4, {"dog": 0.2, "cat": 0.4, "bag": 0.0, "car": 0.2})
    values = [[cell.value if isinstance(cell, Mean) else None for cell in row[1:]] for row in table.rows]
    close = pytest.approx
    assert values == [
        [close(0.5), close(0.9), close(0.9), close(0.4), close(0.7)],
        [close(0.5), close(0.9), close(0.9), close(0.4), None],
        [close(0.9), None, None, None, None],
        [close(0.2), None, None, None, close(0.3)],
    ]
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_rivals_with_a_setting_of_ours_follow_the_same_run_without_it():
    main = [result(name, [0.9] * 2, [0.8, 0.6], seed) for name in (FROZEN, OURS) for seed in (0, 1)]
    main.append(result(CONTRASTED, [0.9] * 2, [0.4, 0.2]))
    first, second = CHANGED_RIVALS
    changed = [
        {**result(name, [0.9] * 2, scores), "change": change}
        for name in (CONTRASTED, FROZEN)
        for change, scores in ((second, [0.5, 0.3]), (first, [0.3, 0.1]))
    ]
    rows = [(name, change, final.value) for name, change, final, *_ in tables.rivals(changed, main).rows]
    close = pytest.approx
    assert [row for row in rows if row[0] == FROZEN] == rows[:3] and rows[3][0] == CONTRASTED
    assert [row[1:] for row in rows[:3]] == [(rows[0][1], close(0.7)), (first, close(0.2)), (second, close(0.4))]
    assert [row[1:] for row in rows[3:]] == [(rows[0][1], close(0.3)), (first, close(0.2)), (second, close(0.4))]


def test_contested_settings_follow_the_default_with_the_mean_of_their_seeds():
    pairs = [{"lr_coefficients": 0.1, "lr_basis": 0.01, "score": 0.50}]
    pairs += [{"lr_coefficients": 0.032, "lr_basis": 0.01, "score": 0.52}]
    chosen = {"method": "seqlora", "lr_coefficients": 0.032, "lr_basis": 0.01, "finals": pairs}
    [variant] = CONTESTED
    names = {"factor": variant.factor, "value": variant.value}
    trained = [{**names, "seed": seed, "final": seed / 250} for seed in (100, 101)]
    default, other = tables.contested(trained, [{"method": "lora"}, chosen]).rows
    assert default[-1] == 0.52
    assert other == [variant.factor, variant.value, pytest.approx(0.402)]


def test_what_concepts_lack_is_split_by_the_distance_of_prompts():
    ours, single = summarize([result(OURS, [0.9, 0.1, 0.4, 0.8], [0.0] * 4), result(AVERAGED, [0.9] * 4, [0.0] * 4)])
    [row] = prompt_similarity([(ours, single)], {"cat": 0.1, "bag": 0.4, "car": 0.5}).rows
    assert row == [4, 0.4, pytest.approx(0.8), pytest.approx(0.3), pytest.approx(-1)]


def test_the_nearest_prompt_is_an_earlier_one():
    words = {
        "photo of a sksdog pet": [4.0, 3.0],
        "photo of a skscat pet": [4.0, 0.0],
        "photo of a sksbag bag": [0.0, 2.0],
    }
    base = SimpleNamespace(encode_prompt=lambda prompt: torch.tensor(words[prompt]))
    concepts = [MiniConcept(name, kind, ()) for name, kind in (("dog", "pet"), ("cat", "pet"), ("bag", "bag"))]
    assert nearest_prompts(base, concepts) == pytest.approx({"cat": 0.75, "bag": 17**0.5 / 2})


def test_tables_by_count_have_a_cell_for_what_was_not_measured():
    summaries = summarize([result(OURS, [0.9] * n, [0.8] * n) for n in (2, 4)] + [result(FROZEN, [0.9] * 2, [0.5] * 2)])
    close = pytest.approx
    (ours, *finals), (theirs, *others) = tables.scale(summaries).rows
    assert (ours, theirs) == (OURS, FROZEN)
    assert finals == [close((0.8, 0.0)), close((0.8, 0.0))] and others[0] == close((0.5, 0.0))
    *_, measured, missing = tables.forgetting(summaries).rows[-1]
    assert measured == close((0.1, 0.0))
    assert not isinstance(others[1], Mean) and not isinstance(missing, Mean)


def test_a_mean_is_one_cell_of_markdown_and_two_of_csv():
    rows = [[OURS, Mean(0.5, 0.01), 2.0], ["base", Mean(0.2, None), "-"]]
    table = Table("t", "A table", ["system", "final", "s"], rows)
    first, second = csv.DictReader(io.StringIO(table.to_csv()))
    assert (float(first["final"]), float(first["final SEM"]), float(first["s"])) == (0.5, 0.01, 2.0)
    assert (float(second["final"]), second["final SEM"], second["s"]) == (0.2, "", "-")
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {4}  # as many cells in every row as there are columns
    assert all(text in lines[2] for text in (OURS, str(Mean(0.5, 0.01)), "2"))


def test_the_rank_correlation_sees_order_alone():
    assert correlation([1, 10, 100], [0.1, 0.2, 0.21]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)
    assert correlation([1, 1, 1], [1, 2, 3]) == 0


def test_the_published_tables_are_those_of_the_published_scores(tmp_path):
    archive.restore(RESULTS / "archive.json", tmp_path)
    facts = records.read_json(tmp_path / "experiment.json")
    scope = Scope([8, 16, 32, 48], [0, 1, 2], facts["passes"], facts["layers"], facts["tuning_concepts"])
    # The scores are of the first mini base, which the tables do not run again.
    base = replace(load_base("mini", "cpu"), identity=BaseIdentity("mini", facts["base"]))
    write_report(Experiment(base, tmp_path, scope, Monitor()), tmp_path / "tables")

    def tables_of(folder: Path) -> dict[str, str]:
        texts = {path.name: path.read_text("utf-8") for path in folder.glob("*.csv")}
        texts.pop("likeness.csv")  # from encodings of the base, which machines round differently
        return texts

    assert tables_of(tmp_path / "tables") == tables_of(RESULTS)
    pictures = {path.name for path in (tmp_path / "tables").glob("*.png")}
    assert pictures == {path.name for path in RESULTS.glob("*.png")} - {"history.png", "systems.png"}
