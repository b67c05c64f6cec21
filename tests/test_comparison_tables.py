"""The experiment's tables: each with a known answer, and all of them from the published scores."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seqlora_core.mini import MiniConcept
from seqlora_core.model.base import load_base
from seqlora_core.monitor import Monitor
from tests.benchmarks.comparison import archive, runs, tables
from tests.benchmarks.comparison.likeness import likeness, nearest_prompts
from tests.benchmarks.comparison.parts import Experiment, Scope
from tests.benchmarks.comparison.report import write_report
from tests.benchmarks.comparison.summary import Mean, Table, correlation, summarize

RESULTS = Path(__file__).parent / "benchmarks" / "results"


def result(system: str, initial: list[float], final: list[float], seed: int = 0, single: float = 0.9) -> dict:
    names = ["dog", "cat", "bag", "car"][: len(final)]
    scores = {"single": dict.fromkeys(names, single)}
    scores |= {"initial": dict(zip(names, initial, strict=True)), "final": dict(zip(names, final, strict=True))}
    costs = {"training_seconds": 2.0, "passes": 600, "fusion_seconds": 0.0, "fusion_megabytes": 0.0}
    return {"system": system, "concepts": len(final), "seed": seed, "scores": scores, **costs}


def test_seeds_are_averaged_a_concept_and_the_standard_error_is_over_concepts():
    [summary] = summarize(
        [result("SeqLoRA", [0.8, 0.6], [0.7, 0.5]), result("SeqLoRA", [0.6, 0.6], [0.5, 0.3], seed=1)]
    )
    assert summary.seeds == (0, 1)
    assert summary.each["final"] == pytest.approx({"dog": 0.6, "cat": 0.4})
    assert summary.mean("final") == pytest.approx((0.5, 0.1))
    assert summary.mean("forgetting") == pytest.approx((0.15, 0.05))


def test_a_lead_is_taken_concept_by_concept():
    ours, theirs = summarize(
        [result("SeqLoRA", [0.9] * 3, [0.9, 0.5, 0.1]), result("InfLoRA", [0.9] * 3, [0.8, 0.4, 0])]
    )
    assert ours.lead(theirs) == pytest.approx((0.1, 0.0), abs=1e-9)


def test_the_target_is_met_or_not_by_its_parts():
    ours = result("SeqLoRA", [0.96, 0.86], [0.88, 0.78])
    rival = result("Continual Alternating", [0.9, 0.8], [0.70, 0.60])
    averaged = result("LoRA, averaged", [0.9, 0.9], [0.87, 0.77], single=0.9)
    rows = {row[2]: row for row in tables.target(summarize([ours, rival, averaged])).rows}
    assert [row[-1] for row in rows.values()] == ["yes", "no", "yes", "yes", "no"]
    assert rows["forgetting at most half of Continual Alternating's"][4] == pytest.approx(0.1)


def test_a_lead_that_differs_from_concept_to_concept_by_more_than_itself_is_none():
    ours, rival = result("SeqLoRA", [0.5] * 2, [0.5, 0.5]), result("Continual Alternating", [0.5] * 2, [0.1, 0.6])
    [row] = [row for row in tables.target(summarize([ours, rival])).rows if row[2].startswith("final above")]
    assert row[3] == pytest.approx((0.15, 0.25))
    assert row[-1] == "no"


def test_the_comparison_has_the_systems_in_order_and_what_to_compare_with():
    results = [result(name, [0.9, 0.9], [0.8, 0.6]) for name in ("LoRA, averaged", "SeqLoRA")]
    table = tables.comparison(summarize(results), 2, {"dog": 0.2, "cat": 0.4, "car": 0.0})
    assert [row[0] for row in table.rows[:2]] == ["SeqLoRA", "LoRA, averaged"]
    assert [row[1].value for row in table.rows] == pytest.approx([0.7, 0.7, 0.9, 0.3])
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_overview_has_one_number_of_concepts_in_full_and_the_finals_of_the_others():
    results = [result(name, [0.9] * 4, [0.8, 0.6, 0.4, 0.2]) for name in ("SeqLoRA", "LoRA, averaged")]
    results.append(result("SeqLoRA", [0.9] * 2, [0.8, 0.6]))
    table = tables.overview(summarize(results), 4, {"dog": 0.2, "cat": 0.4, "bag": 0.0, "car": 0.2})
    cells = [[str(cell).split(" ")[0] for cell in row[1:]] for row in table.rows]
    assert cells == [
        ["0.500", "0.900", "0.900", "0.400", "0.700"],
        ["0.500", "0.900", "0.900", "0.400", "-"],
        ["0.900", "-", "-", "-", "-"],
        ["0.200", "-", "-", "-", "0.300"],
    ]
    assert table.columns[-1] == "final of 2"


def test_rivals_with_a_setting_of_ours_stand_below_the_same_run_without_it():
    main = [result(name, [0.9] * 2, [0.8, 0.6], seed) for name in ("InfLoRA", "SeqLoRA") for seed in (0, 1)]
    main.append(result("LoRACLR", [0.9] * 2, [0.4, 0.2]))
    changed = [
        {**result(name, [0.9] * 2, scores), "change": change}
        for name in ("LoRACLR", "InfLoRA")
        for change, scores in (("mean over the last steps", [0.5, 0.3]), ("without a ridge term", [0.3, 0.1]))
    ]
    rows = tables.rivals(changed, main).rows
    assert [(row[0], row[1], row[2].value) for row in rows] == [
        ("InfLoRA", "-", pytest.approx(0.7)),
        ("InfLoRA", "without a ridge term", pytest.approx(0.2)),
        ("InfLoRA", "mean over the last steps", pytest.approx(0.4)),
        ("LoRACLR", "-", pytest.approx(0.3)),
        ("LoRACLR", "without a ridge term", pytest.approx(0.2)),
        ("LoRACLR", "mean over the last steps", pytest.approx(0.4)),
    ]


def test_what_the_ablation_leaves_open_stands_below_the_default_with_the_mean_of_its_seeds():
    pairs = [{"alpha": alpha, "beta": 0.01, "score": score} for alpha, score in ((0.1, 0.50), (0.032, 0.52))]
    steps = {"method": "seqlora", "alpha": 0.032, "beta": 0.01, "finals": pairs}
    trained = [{"factor": "average", "value": "0", "seed": seed, "final": seed / 250} for seed in (100, 101)]
    rows = tables.contested(trained, [{"method": "lora"}, steps]).rows
    assert rows == [["as by default", "", 0.52], ["average", "0", pytest.approx(0.402)]]


def test_what_is_lacking_is_split_by_the_distance_of_prompts():
    ours, single = summarize(
        [result("SeqLoRA", [0.9, 0.1, 0.4, 0.8], [0.0] * 4), result("LoRA, averaged", [0.9] * 4, [0.0] * 4)]
    )
    [row] = likeness([(ours, single)], {"cat": 0.1, "bag": 0.4, "car": 0.5}).rows
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


def test_counts_and_forgetting_have_a_column_for_what_was_not_measured_too():
    summaries = summarize(
        [result("SeqLoRA", [0.9] * n, [0.8] * n) for n in (2, 4)] + [result("InfLoRA", [0.9] * 2, [0.5] * 2)]
    )
    assert [[str(cell) for cell in row] for row in tables.scale(summaries).rows] == [
        ["SeqLoRA", "0.800 ± 0.000", "0.800 ± 0.000"],
        ["InfLoRA", "0.500 ± 0.000", "-"],
    ]
    last = tables.forgetting(summaries).rows[-1]
    assert last[:2] == ["4 concepts", "forgetting"] and last[3] == "-"


def test_a_mean_is_one_cell_of_markdown_and_two_of_csv():
    table = Table(
        "t", "A table", ["system", "final", "s"], [["SeqLoRA", Mean(0.5, 0.01), 2.0], ["base", Mean(0.2, None), "-"]]
    )
    assert table.to_csv().splitlines() == [
        "system,final,final SEM,s",
        "SeqLoRA,0.500000,0.010000,2",
        "base,0.200000,,-",
    ]
    assert "| SeqLoRA | 0.500 ± 0.010 | 2 |" in table.to_markdown()


def test_the_rank_correlation_sees_order_alone():
    assert correlation([1, 10, 100], [0.1, 0.2, 0.21]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)
    assert correlation([1, 1, 1], [1, 2, 3]) == 0


def test_the_published_tables_are_those_of_the_published_scores(tmp_path):
    archive.restore(RESULTS / "archive.json", tmp_path)
    facts = runs.read_json(tmp_path / "experiment.json")
    scope = Scope([8, 16, 32, 48], [0, 1, 2], facts["passes"], facts["layers"], facts["tuning_concepts"])
    write_report(Experiment(load_base("mini", "cpu"), tmp_path, scope, Monitor()), tmp_path / "tables")

    def tables_of(folder: Path) -> dict[str, str]:
        texts = {path.name: path.read_text("utf-8") for path in folder.glob("*.csv")}
        texts.pop("likeness.csv")  # from the base's own encodings, which machines round differently
        return texts

    assert tables_of(tmp_path / "tables") == tables_of(RESULTS)
    pictures = {path.name for path in (tmp_path / "tables").glob("*.png")}
    assert pictures == {path.name for path in RESULTS.glob("*.png")} - {"history.png", "systems.png"}
