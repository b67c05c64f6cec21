"""The comparison: equal passes, step sizes by a walk, work that is done once, and intervals that mean what they say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from seqlora_core.bank.names import slug
from seqlora_core.data.images import to_tensor
from seqlora_core.mini import mini_concepts
from seqlora_core.model.base import load_base
from seqlora_core.training.methods import METHODS
from seqlora_core.training.protected_prompts import COMMON_SUBJECTS
from tests.benchmarks.comparison import job_queue, measure, recipes, runs, tables, tuning
from tests.benchmarks.comparison.__main__ import Comparison
from tests.benchmarks.comparison.recipes import ABLATION, DEFAULTS, LORA, OURS, SYSTEMS, System
from tests.benchmarks.comparison.runs import Workshop, write_json
from tests.benchmarks.comparison.statistics import bootstrap_interval, paired

RECIPES = {recipe.name: recipe for recipe in [s.recipe for s in SYSTEMS] + [recipe for _, recipe in ABLATION]}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_spends_the_same_passes_up_to_one_step(recipe):
    if recipe.settings.get("method", "seqlora") not in METHODS:
        pytest.skip(f"this version has no method {recipe.settings['method']}")
    config = recipe.config(0, 1e-2)
    step = METHODS[config.method].passes(config)
    left = recipes.PASSES - recipes.WORD_PASSES
    assert left - step < config.steps * step <= left


def test_a_walk_finds_the_best_step_size_and_tries_nothing_twice():
    tried = []

    def score(step_size: float) -> float:
        tried.append(step_size)
        return -abs(np.log10(step_size) + 1)

    chosen = tuning.walk(score, start=-4, bounds=(-7, 0))
    assert (chosen["step_size"], chosen["at_bound"]) == (0.1, False)
    assert sorted(tried) == [size for size, _ in chosen["trials"]] and len(tried) == len(set(tried))


def test_a_walk_says_where_it_ended_at_the_bound():
    chosen = tuning.walk(lambda step_size: step_size, start=-4, bounds=(-7, 0))
    assert (chosen["step_size"], chosen["at_bound"]) == (1.0, True)


def test_tuning_and_table_share_no_concept():
    of_table = {concept.name for concept in mini_concepts()[: runs.OF_TABLE]}
    chosen = Workshop(None, None).tuning_concepts
    assert len(chosen) == tuning.MERGED_CONCEPTS and not of_table & {concept.name for concept in chosen}


def test_a_difference_is_paired_by_concept_and_seed():
    first = {(0, "dog"): 0.9, (1, "dog"): 0.7, (0, "cat"): 0.5, (0, "owl"): 0.1}
    second = {(0, "dog"): 0.8, (1, "dog"): 0.6, (0, "cat"): 0.4}
    difference = paired(first, second)
    assert (difference.wins, difference.pairs) == (3, 3)
    assert difference.mean == pytest.approx(0.1) == pytest.approx(difference.low) == pytest.approx(difference.high)
    assert difference.decided and paired(first, {}) is None


def test_the_interval_is_that_of_the_mean_where_it_is_known():
    values = np.random.default_rng(1).normal(0.2, 1.0, 400)
    low, high = bootstrap_interval([[value] for value in values])
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.01)


def test_seeds_of_one_concept_do_not_narrow_the_interval():
    values = list(np.random.default_rng(2).normal(size=20))
    once = bootstrap_interval([[value] for value in values])
    assert bootstrap_interval([[value] * 3 for value in values]) == pytest.approx(once)


def test_other_things_are_neither_protected_nor_concepts():
    names = measure.unprotected_things()
    held_out = {concept.name for concept in mini_concepts()}
    assert len(set(names)) == measure.THINGS
    assert not any(name in held_out or set(name.split()) & set(COMMON_SUBJECTS) for name in names)


def test_a_job_that_another_process_works_on_is_left_for_later(tmp_path, monkeypatch):
    from filelock import FileLock

    done, elsewhere = [], FileLock(tmp_path / "a.lock")
    elsewhere.acquire()
    monkeypatch.setattr(job_queue.time, "sleep", lambda seconds: (done.append("waited"), elsewhere.release()))
    jobs = [job_queue.Job(name, tmp_path / f"{name}.lock", lambda name=name: done.append(name)) for name in ("a", "b")]
    job_queue.run_jobs(jobs)
    assert done == ["b", "waited", "a"]


@pytest.fixture
def small(tmp_path, monkeypatch) -> Comparison:
    """The comparison with two concepts, a few passes and small sets of images."""
    for module, name, value in (
        (recipes, "PASSES", 8),
        (recipes, "WORD_PASSES", 2),
        (runs, "WORD_PASSES", 2),
        (runs, "IMAGES", 1),
        (runs, "SAMPLER_STEPS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("tests.benchmarks.comparison.__main__.MIDDLE", 2)
    monkeypatch.setattr(tables, "MIDDLE", 2)
    shop = Workshop(load_base("mini", "cpu"), tmp_path)
    choices = tuning.Tuning(shop)
    for recipe in RECIPES.values():
        write_json(choices.folder / f"{recipe.name}.json", {"step_size": 0.01, "trials": [[0.01, 0.5]]})
    return Comparison(shop, choices, (0,))


def test_systems_are_measured_once_and_make_the_same_tables_twice(small, tmp_path, monkeypatch):
    systems = [System("SeqLoRA (ours)", OURS), System("LoRA, summed", LORA), System("TIES", OURS, "own words")]
    small._measure("main", 2, systems, 0)
    monkeypatch.setattr("tests.benchmarks.comparison.__main__.CONCEPTS", 1)
    monkeypatch.setattr("tests.benchmarks.comparison.__main__.DEFAULTS", [DEFAULTS[1], DEFAULTS[-1]])
    small.defaults()
    results = tables.Results(tmp_path)
    [ours] = results.of("main", "SeqLoRA (ours)", 2)
    assert ours["scores"]["final"].keys() == ours["scores"]["after"].keys() == ours["scores"]["alone"].keys()
    last = list(ours["scores"]["final"])[-1]
    assert ours["scores"]["final"][last] == ours["scores"]["after"][last]
    monkeypatch.setattr(runs, "generate", lambda *anything, **more: pytest.fail("drawn again"))
    monkeypatch.setattr(runs, "train_concept", lambda *anything, **more: pytest.fail("trained again"))
    (tmp_path / "results" / "main" / f"{slug(ours['system'])}-2-0.json").unlink()
    small._measure("main", 2, systems, 0)
    assert tables.Results(tmp_path).of("main", "SeqLoRA (ours)", 2) == [ours]
    monkeypatch.setattr(tables, "LARGER", (2, 3))
    for folder in ("first", "second"):
        tables.write_tables(tmp_path, tmp_path / folder)
    made = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}
    assert "| `--rank 4` | 0." in made["report.md"].decode()
    assert "## More concepts\n\n| system | seeds of 32 | final of 2 |" in made["report.md"].decode()
    assert "| SeqLoRA (ours) | 1 |" in made["report.md"].decode() and Image.open(tmp_path / "first" / "grid.png")


def test_without_eq_4_a_basis_may_overlap_with_earlier_ones(small):
    def overlap(recipe: recipes.Recipe) -> float:
        run = small.run(recipe, 0)
        first, second = run.parts(run.learn(2))
        layer = next(iter(first.adapters))
        return (first.adapters[layer].down @ second.adapters[layer].down.T).abs().max().item()

    free = RECIPES["no-eq4"]
    assert overlap(OURS) < 1e-5 < overlap(free)
    assert METHODS["seqlora"].constrained


def test_a_folder_of_another_experiment_is_refused(small, tmp_path):
    run = small.run(OURS, 0)
    path = run.folder / "run.json"
    path.write_text(path.read_text("utf-8").replace('"rank": 2', '"rank": 3'), "utf-8")
    with pytest.raises(Exception, match="another experiment"):
        small.run(OURS, 0)


def test_folded_adapters_leave_the_weights_as_they_were(small):
    run = small.run(OURS, 0)
    [part] = run.parts(run.learn(1))
    unet = small.shop.base.pipeline.unet
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    plain, drawn = (to_tensor(draw("photo of a dog")) for draw in (run.draw, run.drawing_with(part.adapters)))
    assert not torch.equal(plain, drawn)
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    assert json.loads((run.folder / "run.json").read_text("utf-8"))["order"][0] == run.concepts[0].name
