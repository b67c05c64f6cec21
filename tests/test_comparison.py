"""The experiment: equal passes, chosen learning rates, and work that is shared and never done twice."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from training_runs import encoded, random_concept

from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.composition.fusion import FusionSettings
from seqlora_core.errors import UserError
from seqlora_core.mini import MiniConcept, mini_concepts
from seqlora_core.model.adapters import Adapter, attach
from seqlora_core.model.sd15 import find_layers, layer_shapes
from seqlora_core.monitor import Monitor
from seqlora_core.training.config import ResolvedConfig
from seqlora_core.training.methods import METHODS
from seqlora_core.training.protected_prompts import COMMON_SUBJECTS
from seqlora_core.training.trainer import train_concept
from tests.benchmarks.comparison import archive, base_drift, job_queue, records, runs, sections, tables, tuning
from tests.benchmarks.comparison.job_queue import Job, run_jobs
from tests.benchmarks.comparison.measure import measure
from tests.benchmarks.comparison.recipes import ALTERNATING, SEQLORA, SYSTEMS, VARIANTS, Recipe, passes_per_step
from tests.benchmarks.comparison.runs import Run, folded

RECIPES = [system.recipe for system in SYSTEMS] + [variant.recipe for variant in VARIANTS]


def pair(lr_coefficients: float, lr_basis: float, score: float) -> dict:
    return {"lr_coefficients": lr_coefficients, "lr_basis": lr_basis, "score": score}


ANY = pair(0.01, 0.01, 0.5)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.method} {dict(recipe.settings)}")
def test_every_recipe_spends_the_same_passes_up_to_one_step(recipe):
    config = recipe.config(600, 0, 1e-3, 1e-3)
    step = passes_per_step(config)
    assert 600 - step < config.steps * step <= 600


@pytest.mark.parametrize(
    "recipe",
    [
        SEQLORA,
        ALTERNATING,
        Recipe("lora"),
        Recipe("inflora"),
        Recipe("seqlora", {"inner_steps": 2, "bilevel_iterations": 2}),
        Recipe("alternating", {"inner_steps": 2}),
        Recipe("seqlora", {"hypergradient": "finite-difference"}),
    ],
    ids=lambda recipe: f"{recipe.method} {dict(recipe.settings)}",
)
def test_the_passes_of_a_step_are_those_that_a_training_run_makes(denoiser, bank, recipe):
    config = recipe.config(20, 0, 1e-3, 1e-3)
    concept = train_concept(denoiser, encoded(random_concept(1)), bank, ConceptSpec("a", "sksa", "a"), config)
    assert concept.metrics["passes"] == config.steps * passes_per_step(config)


def test_learning_rates_are_found_by_a_walk_that_tries_nothing_twice():
    tried = []

    def trial(lr_coefficients: float, lr_basis: float) -> float:
        tried.append((lr_coefficients, lr_basis))
        return -abs(lr_coefficients - 0.032) - 0.1 * abs(lr_basis - 0.01)

    chosen = tuning.choose(SEQLORA, trial)
    assert tuning.rates(chosen) == (0.032, 0.01)
    assert len(tried) == len(set(tried)) == len(chosen["trials"])
    assert tuning.rates(tuning.choose(Recipe("orthogonal"), trial)) == (0.032, 0.032)


def test_only_pairs_that_a_walk_cannot_tell_apart_are_tried_again():
    walk = pair(0.032, 0.01, 0.51)
    walk["trials"] = [pair(0.01, 0.01, 0.50), pair(0.032, 0.01, 0.51), pair(0.032, 0.032, 0.40)]
    tried = []

    def trial(lr_coefficients: float, lr_basis: float) -> float:
        tried.append((lr_coefficients, lr_basis))
        return 1 - lr_coefficients

    decided = tuning.decide(walk, trial)
    assert (tuning.rates(decided), tried) == ((0.01, 0.01), [(0.01, 0.01), (0.032, 0.01)])
    rows = [row[1:] for row in tables.tuning([{"method": "seqlora", **decided}]).rows]
    assert rows == [[0.01, 0.01, 0.5, 0.99, "chosen"], [0.032, 0.01, 0.51, 0.968, ""], [0.032, 0.032, 0.4, "", ""]]
    walk["trials"] = walk["trials"][1:]
    assert tuning.decide(walk, trial) == walk and len(tried) == 2


def test_near_pairs_are_decided_by_runs_that_processes_can_share(tmp_path, monkeypatch):
    trials = [pair(0.01, 0.01, 0.50), pair(0.032, 0.01, 0.51), pair(0.1, 0.01, 0.4)]
    monkeypatch.setattr(tuning.Tuning, "walk", lambda self, recipe: {"score": 0.51, "trials": trials})
    choices = tuning.Tuning(tmp_path, open_run=None, open_deciding=lambda *which: which[1:], concepts=8)
    expected = [(size, 0.01, seed) for size in (0.01, 0.032) for seed in tuning.DECIDING_SEEDS]
    assert choices.deciding_runs(ALTERNATING) == expected
    assert choices.deciding_runs(Recipe("lora", tuned_for="single")) == []
    assert choices.deciding_runs(Recipe("seqlora", decided=False)) == []


def test_a_method_is_tuned_once_with_its_defaults_except_under_an_alias(tmp_path, monkeypatch):
    """By gradient and by Adam, learning rates have nothing in common, so those are tuned apart."""
    tuned = []
    monkeypatch.setattr(tuning.Tuning, "walk", lambda self, recipe: tuned.append(recipe) or {**ANY, "trials": [ANY]})
    experiment = SimpleNamespace(tuning=tuning.Tuning(tmp_path, open_run=None, open_deciding=None, concepts=8))
    published = Recipe("seqlora", {"layers": "all", "interference_penalty": 0.0}, alias="published")
    changed = [Recipe("seqlora", {"layers": "all"}), Recipe("seqlora", {"train_on": "bare", "optimizer": "gradient"})]
    asked = [SEQLORA, *changed, published]
    for _ in range(2):
        for job in sections.choosing_jobs(experiment, asked):
            job.do()
    assert tuned == [SEQLORA, Recipe("seqlora", {"optimizer": "gradient"}), published]
    assert all(tuning.rates(experiment.tuning.choice(recipe)) == (0.01, 0.01) for recipe in asked)


def test_a_walk_ends_at_the_border_of_the_grid():
    largest = tuning.size(tuning.RANGE["adam"][1])
    assert tuning.rates(tuning.choose(SEQLORA, lambda *pair: sum(pair))) == (largest, largest)


@pytest.fixture
def run(tmp_path, denoiser, base_identity, monkeypatch) -> Run:
    """A run of three concepts on the small UNet, whose images are blank and score 1."""
    layers = find_layers(denoiser.unet)
    base = SimpleNamespace(
        pipeline=SimpleNamespace(unet=denoiser.unet),
        identity=base_identity,
        layers=layer_shapes(layers),
        denoiser=lambda: denoiser,
    )
    monkeypatch.setattr(
        runs, "encode_concept", lambda base, references, *rest, **more: random_concept(len(references[0].source))
    )
    monkeypatch.setattr(runs, "sample_images", lambda base, prompt, seed: [Image.new("RGB", (8, 8))] * 2)
    monkeypatch.setattr(runs, "score", lambda metric, images, references, prompt: 1.0)
    concepts = [MiniConcept(name, "thing", (Image.new("RGB", (32, 32)),)) for name in ("one", "three", "fifth")]
    return Run(base, tmp_path / "runs", SEQLORA.config(6, 0, 1e-3, 1e-3), concepts, Monitor())


def test_a_concept_is_trained_once_whatever_is_asked_for_later(run):
    first = run.learn(1)
    again = Run(run.base, run.folder.parent, run.config, run.concepts, Monitor())
    assert again.folder == run.folder
    assert again.learn(3)[:1] == first
    assert [concept.name for concept in again.learn(3)] == ["one", "three", "fifth"]
    assert again.learn(2) == again.learn(3)[:2]


def test_a_changed_default_of_a_method_is_another_run(run, monkeypatch):
    def folder(**settings) -> Path:
        config = Recipe("seqlora", settings).config(6, 0, 1e-3, 1e-3)
        return Run(run.base, run.folder.parent, config, run.concepts, Monitor()).folder

    asked_for = folder(interference_penalty=METHODS["seqlora"].defaults["interference_penalty"])
    assert folder() == asked_for == run.folder
    defaults = {**METHODS["seqlora"].defaults, "interference_penalty": 0.5}
    monkeypatch.setitem(METHODS, "seqlora", dataclasses.replace(METHODS["seqlora"], defaults=defaults))
    assert folder() == folder(interference_penalty=0.5) != run.folder


def test_another_order_of_the_concepts_is_another_run(run):
    other = Run(run.base, run.folder.parent, run.config, run.concepts[::-1], Monitor())
    assert other.folder != run.folder


def test_a_run_is_trained_with_the_bank_s_concepts_protected(run, monkeypatch):
    asked = []

    def encode(base, references, config, protected):
        asked.append(set(protected))
        return random_concept(len(asked))

    monkeypatch.setattr(runs, "encode_concept", encode)
    run.learn(2)
    assert "photo of a sksone thing" in asked[1] - asked[0]


def test_other_settings_of_a_fusion_are_another_composition():
    other = dataclasses.replace(SYSTEMS[0], settings=FusionSettings(iterations=7))
    assert other.composition != SYSTEMS[0].composition


def test_an_interrupted_sheet_continues_with_the_missing_images(run, monkeypatch):
    learned, sampled = run.learn(3), []

    def sample_images(base, prompt, seed):
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append(prompt)
        return [Image.new("RGB", (8, 8))] * 2

    monkeypatch.setattr(runs, "sample_images", sample_images)
    with pytest.raises(KeyboardInterrupt):
        run.sheet("s", learned, lambda: ({}, {"fusion_seconds": 3.0}))
    sampled.clear()
    record = run.sheet("s", learned, lambda: ({}, {"fusion_seconds": 9.0}))
    assert sampled == ["photo of a sksfifth thing"]
    assert record == {"scores": {"one": 1.0, "three": 1.0, "fifth": 1.0}, "fusion_seconds": 3.0}
    assert run.sheet("s", learned, lambda: pytest.fail("made again")) == record


def test_the_cost_of_a_sheet_is_returned_at_once_and_later(run, monkeypatch):
    monkeypatch.setattr(runs, "sample_images", lambda base, prompt, seed: [Image.new("RGB", (8, 8))] * 2)
    first = run.sheet("s", run.learn(1), lambda: ({}, {"fusion_seconds": 3.0}))
    assert first["fusion_seconds"] == run.sheet("s", run.learn(1), lambda: pytest.fail())["fusion_seconds"] == 3.0


def test_folded_adapters_act_as_attached_ones_and_restore_the_weights(denoiser):
    layers = find_layers(denoiser.unet)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    adapters = {
        name: Adapter.from_factors(torch.randn(layer.out_features, 2) / 10, torch.randn(layer.in_features, 2) / 10)
        for name, layer in layers.items()
    }
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 7, 32)
    with torch.no_grad(), attach(layers, adapters):
        expected = denoiser.predict_noise(*inputs)
    with torch.no_grad(), folded(SimpleNamespace(pipeline=SimpleNamespace(unet=denoiser.unet)), adapters):
        assert torch.allclose(denoiser.predict_noise(*inputs), expected, atol=1e-4)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())


@pytest.mark.parametrize(("fusion", "initial"), [("sum", [1, 2, 3]), ("weighted-average", [1, 1, 1])])
def test_a_concept_is_scored_after_its_training_in_the_end_and_alone(run, monkeypatch, fusion, initial):
    """A fusion is made anew for every set of concepts and has no history: before it, each concept is as it is alone."""
    name, layer = find_layers(run.base.pipeline.unet, run.config.layers).popitem()
    plain = layer.weight.detach().clone()

    def sample_images(base, prompt, seed):
        update = find_layers(base.pipeline.unet)[name].weight.detach() - plain
        concepts = int(torch.linalg.matrix_rank(update, rtol=1e-4)) // run.config.rank
        return [Image.new("L", (8, 8), concepts)]

    monkeypatch.setattr(runs, "sample_images", sample_images)
    monkeypatch.setattr(runs, "score", lambda metric, images, references, prompt: images[0].getpixel((0, 0)))
    result = measure(dataclasses.replace(SYSTEMS[0], fusion=fusion), run, 3)
    scores = result["scores"]
    assert result["settings"] == run.config.as_dict()
    assert list(scores["initial"].values()) == initial
    assert list(scores["final"].values()) == [3, 3, 3]
    assert list(scores["single"].values()) == [1, 1, 1]


def test_images_of_other_things_are_compared_to_the_base_s_own(run, monkeypatch):
    weight = find_layers(run.base.pipeline.unet, run.config.layers).popitem()[1].weight.data

    def sample_images(base, prompt, seed):
        now = find_layers(base.pipeline.unet, run.config.layers).popitem()[1].weight.data
        noise = np.random.default_rng(len(prompt) if torch.equal(now, weight) else 0)
        return [Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8))]

    monkeypatch.setattr(base_drift, "sample_images", sample_images)
    alike = base_drift.measure_base_drift(SYSTEMS[0], run, 3)["alike"]
    assert alike.keys() == {"0", "1"}  # 4 and 16 concepts are more than there are
    assert alike["0"] == pytest.approx(1.0)
    assert alike["1"] < 0.99


def test_other_things_are_neither_protected_nor_concepts():
    names = base_drift.unprotected_things()
    assert len(set(names)) == base_drift.THINGS
    held_out = {concept.name for concept in mini_concepts()}
    assert not any(name in held_out or set(name.split()) & set(COMMON_SUBJECTS) for name in names)


def test_a_job_that_another_process_works_on_is_left_for_later(tmp_path, monkeypatch):
    done, elsewhere = [], FileLock(tmp_path / "a.lock")
    elsewhere.acquire()
    monkeypatch.setattr(job_queue.time, "sleep", lambda seconds: (done.append("waited"), elsewhere.release()))
    run_jobs([Job(name, tmp_path / f"{name}.lock", lambda name=name: done.append(name)) for name in ("a", "b")])
    assert done == ["b", "waited", "a"]


def test_old_results_are_read_under_todays_names_with_todays_settings(tmp_path):
    """Known values: what version 0.1.0 computed for settings that were left open."""
    config = {"method": "seqlora", "alpha": 0.032, "beta": 0.01, "crosstalk": None, "train_on": "subsets"}
    config |= {"lower_step": "auto", "hypergradient": "exact", "draw": "independent", "rank": 2}
    records.write_json(tmp_path / "results" / "main" / "a.json", {"system": "a", "config": config})
    [record] = sections.read_results(tmp_path, "main")
    assert record["system"] == "a" and "config" not in record
    settings = ResolvedConfig.from_dict(record["settings"])
    assert (settings.lr_coefficients, settings.lr_basis, settings.interference_penalty) == (0.032, 0.01, 0.01)
    assert (settings.train_on, settings.lower_step, settings.column_sampling) == ("alternate", "repeat", "independent")


def test_old_choices_of_learning_rates_are_read_under_todays_names(tmp_path):
    old = {"alpha": 0.1, "beta": 0.01, "score": 0.5}
    records.write_json(tmp_path / "a.json", {"method": "lora", **old, "trials": [old], "finals": [old]})
    new = pair(0.1, 0.01, 0.5)
    assert records.read_record(tmp_path / "a.json") == {"method": "lora", **new, "trials": [new], "finals": [new]}


def test_todays_records_are_read_as_they_were_written(tmp_path, run):
    choice = {"method": "seqlora", **ANY, "trials": [ANY]}
    forecast = {"crosstalk": {"dog": [1.0]}, "forgetting": {"dog": 0.1}}
    for document in ({"settings": run.config.as_dict()}, choice, forecast):
        records.write_json(tmp_path / "a.json", document)
        assert records.read_record(tmp_path / "a.json") == document


def test_an_experiment_continues_from_an_archive_with_what_it_lacks(tmp_path):
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "archive.json"
    records.write_json(first / "experiment.json", {"passes": 300})
    records.write_json(first / "tuning" / "lora.json", {"alpha": 0.1})
    records.write_json(first / "results" / "main" / "a.json", {"system": "a"})
    records.write_json(second / "tuning" / "lora.json", {"alpha": 0.2})
    archive.write_archive(first, file)
    archive.restore(file, second)
    assert records.read_json(second / "results" / "main" / "a.json") == {"system": "a"}
    assert records.read_json(second / "tuning" / "lora.json") == {"alpha": 0.2}


def test_an_archive_of_other_settings_is_refused(tmp_path):
    records.write_json(tmp_path / "archive.json", {"experiment.json": {"passes": 300}})
    records.write_json(tmp_path / "out" / "experiment.json", {"passes": 600})
    with pytest.raises(UserError, match=r"300.*600"):
        archive.restore(tmp_path / "archive.json", tmp_path / "out")


def test_an_archive_cannot_write_outside_its_experiment(tmp_path):
    records.write_json(tmp_path / "archive.json", {"experiment.json": {}, "../evil.json": {}})
    with pytest.raises(UserError, match="outside"):
        archive.restore(tmp_path / "archive.json", tmp_path / "out")
    assert not (tmp_path / "evil.json").exists()
