"""The experiment: equal passes, chosen step sizes, and work that is shared and never done twice."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from training_runs import random_concept

from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.composition.fusion import FusionSettings
from seqlora_core.errors import UserError
from seqlora_core.mini import MiniConcept, mini_concepts
from seqlora_core.model.adapters import Adapter, attach
from seqlora_core.model.sd15 import find_layers, layer_shapes
from seqlora_core.monitor import Monitor
from seqlora_core.training.methods import METHODS
from seqlora_core.training.protected_prompts import COMMON_SUBJECTS
from seqlora_core.training.trainer import train_concept
from tests.benchmarks.comparison import archive, others, runs, tables, tuning, work
from tests.benchmarks.comparison.measure import measure
from tests.benchmarks.comparison.recipes import ALTERNATING, SEQLORA, SYSTEMS, VARIANTS, Recipe, passes_a_step
from tests.benchmarks.comparison.runs import Run, folded
from tests.benchmarks.comparison.work import Job, work_off

RECIPES = [system.recipe for system in SYSTEMS] + [variant.recipe for variant in VARIANTS]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.method} {dict(recipe.settings)}")
def test_every_recipe_spends_the_same_passes_but_for_an_unfinished_step(recipe):
    config = recipe.config(600, 0, 1e-3, 1e-3)
    step = passes_a_step(config)
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
def test_the_passes_of_a_step_are_those_that_a_training_makes(denoiser, bank, recipe):
    config = recipe.config(20, 0, 1e-3, 1e-3)
    concept = train_concept(denoiser, random_concept(1), bank, ConceptSpec("a", "sksa", "a"), config)
    assert concept.metrics["passes"] == config.steps * passes_a_step(config)


def test_step_sizes_are_found_by_a_walk_that_tries_nothing_twice():
    tried = []

    def trial(alpha: float, beta: float) -> float:
        tried.append((alpha, beta))
        return -abs(alpha - 0.032) - 0.1 * abs(beta - 0.01)

    chosen = tuning.choose(SEQLORA, trial)
    assert (chosen["alpha"], chosen["beta"]) == (0.032, 0.01)
    assert len(tried) == len(set(tried)) == len(chosen["trials"])
    frozen = tuning.choose(Recipe("orthogonal"), trial)
    assert frozen["alpha"] == frozen["beta"] == 0.032


def test_pairs_that_a_walk_cannot_tell_apart_are_tried_again_and_others_are_not():
    pairs = [(0.01, 0.01, 0.50), (0.032, 0.01, 0.51), (0.032, 0.032, 0.40)]
    walk = {"alpha": 0.032, "beta": 0.01, "score": 0.51}
    walk["trials"] = [{"alpha": alpha, "beta": beta, "score": score} for alpha, beta, score in pairs]
    tried = []

    def trial(alpha: float, beta: float) -> float:
        tried.append((alpha, beta))
        return 1 - alpha

    decided = tuning.decide(walk, trial)
    assert (decided["alpha"], decided["beta"], tried) == (0.01, 0.01, [(0.01, 0.01), (0.032, 0.01)])
    rows = [row[1:] for row in tables.tuning([{"method": "seqlora", **decided}]).rows]
    assert rows == [[0.01, 0.01, 0.5, 0.99, "chosen"], [0.032, 0.01, 0.51, 0.968, ""], [0.032, 0.032, 0.4, "", ""]]
    walk["trials"] = walk["trials"][1:]
    assert tuning.decide(walk, trial) == walk and len(tried) == 2


def test_what_decides_between_near_pairs_is_work_for_several_processes(tmp_path, monkeypatch):
    trials = [
        {"alpha": size, "beta": 0.01, "score": score} for size, score in ((0.01, 0.50), (0.032, 0.51), (0.1, 0.4))
    ]
    monkeypatch.setattr(tuning.Tuning, "walk", lambda self, recipe: {"score": 0.51, "trials": trials})
    choices = tuning.Tuning(tmp_path, open_run=None, open_deciding=lambda *which: which[1:], concepts=8)
    expected = [(size, 0.01, seed) for size in (0.01, 0.032) for seed in tuning.DECIDING_SEEDS]
    assert choices.deciding_runs(ALTERNATING) == expected
    assert choices.deciding_runs(Recipe("lora", tuned_for="single")) == []
    assert choices.deciding_runs(Recipe("seqlora", decided=False)) == []


def test_step_sizes_of_seqlora_are_chosen_once_and_as_it_trains_by_default():
    ours = [recipe for recipe in RECIPES if recipe.method == "seqlora" and "optimizer" not in recipe.settings]
    shared = [recipe for recipe in ours if not recipe.alias]
    assert {recipe.tuning for recipe in shared} == {"seqlora"}
    assert all(recipe.tuned == Recipe("seqlora") for recipe in shared)
    [published] = [recipe for recipe in ours if recipe.alias]
    assert published.tuned.settings["crosstalk"] == 0.0


def test_a_walk_ends_at_the_border_of_the_grid():
    assert tuning.choose(SEQLORA, lambda alpha, beta: alpha + beta)["alpha"] == tuning.size(tuning.RANGE["adam"][1])


@pytest.fixture
def run(tmp_path, denoiser, base_identity, monkeypatch) -> Run:
    """A run of three concepts on the small UNet, whose pictures are blank and score 1."""
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
    monkeypatch.setattr(runs, "draw", lambda base, prompt, seed: [Image.new("RGB", (8, 8))] * 2)
    monkeypatch.setattr(runs, "score", lambda metric, pictures, references, prompt: 1.0)
    concepts = [MiniConcept(name, "thing", (Image.new("RGB", (32, 32)),)) for name in ("one", "three", "fifth")]
    return Run(base, tmp_path / "runs", SEQLORA.config(6, 0, 1e-3, 1e-3), concepts, Monitor())


def test_a_concept_is_trained_once_whatever_is_asked_for_later(run):
    first = run.learn(1)
    again = Run(run.base, run.folder.parent, run.config, run.concepts, Monitor())
    assert again.folder == run.folder
    assert again.learn(3)[:1] == first
    assert [concept.name for concept in again.learn(3)] == ["one", "three", "fifth"]
    assert again.learn(2) == again.learn(3)[:2]


def test_a_changed_default_of_a_method_is_another_run_and_other_settings_another_fusion(run, monkeypatch):
    changed = dataclasses.replace(METHODS["seqlora"], crosstalk=0.5)
    monkeypatch.setitem(METHODS, "seqlora", changed)
    assert Run(run.base, run.folder.parent, run.config, run.concepts, Monitor()).folder != run.folder
    other = dataclasses.replace(SYSTEMS[0], settings=FusionSettings(iterations=7))
    assert other.composition != SYSTEMS[0].composition


def test_an_interrupted_sheet_goes_on_with_the_pictures_that_are_missing(run, monkeypatch):
    learned, drawn = run.learn(3), []

    def draw(base, prompt, seed):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(prompt)
        return [Image.new("RGB", (8, 8))] * 2

    monkeypatch.setattr(runs, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        run.sheet("s", learned, lambda: ({}, {"fusion_seconds": 3.0}))
    drawn.clear()
    record = run.sheet("s", learned, lambda: ({}, {"fusion_seconds": 9.0}))
    assert drawn == ["photo of a sksfifth thing"]
    assert record == {"scores": {"one": 1.0, "three": 1.0, "fifth": 1.0}, "fusion_seconds": 3.0}
    assert run.sheet("s", learned, lambda: pytest.fail("made again")) == record


def test_what_a_sheet_cost_is_told_at_once_and_later(run, monkeypatch):
    monkeypatch.setattr(runs, "draw", lambda base, prompt, seed: [Image.new("RGB", (8, 8))] * 2)
    first = run.sheet("s", run.learn(1), lambda: ({}, {"fusion_seconds": 3.0}))
    assert first["fusion_seconds"] == run.sheet("s", run.learn(1), lambda: pytest.fail())["fusion_seconds"] == 3.0


def test_folded_adapters_act_as_attached_ones_and_leave_the_weights_as_they_were(denoiser):
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
def test_a_concept_is_measured_right_after_its_training_in_the_end_and_alone(run, monkeypatch, fusion, initial):
    """What is put together anew for every set of concepts has no history: before, each is as it is alone."""
    name, layer = find_layers(run.base.pipeline.unet, run.config.layers).popitem()
    plain = layer.weight.detach().clone()

    def draw(base, prompt, seed):
        update = find_layers(base.pipeline.unet)[name].weight.detach() - plain
        concepts = int(torch.linalg.matrix_rank(update, rtol=1e-4)) // run.config.rank
        return [Image.new("L", (8, 8), concepts)]

    monkeypatch.setattr(runs, "draw", draw)
    monkeypatch.setattr(runs, "score", lambda metric, pictures, references, prompt: pictures[0].getpixel((0, 0)))
    scores = measure(dataclasses.replace(SYSTEMS[0], fusion=fusion), run, 3)["scores"]
    assert list(scores["initial"].values()) == initial
    assert list(scores["final"].values()) == [3, 3, 3]
    assert list(scores["single"].values()) == [1, 1, 1]


def test_pictures_of_other_things_are_compared_with_the_base_s_own(run, monkeypatch):
    weight = find_layers(run.base.pipeline.unet, run.config.layers).popitem()[1].weight.data

    def draw(base, prompt, seed):
        now = find_layers(base.pipeline.unet, run.config.layers).popitem()[1].weight.data
        noise = np.random.default_rng(len(prompt) if torch.equal(now, weight) else 0)
        return [Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8))]

    monkeypatch.setattr(others, "draw", draw)
    alike = others.measure_others(SYSTEMS[0], run, 3)["alike"]
    assert alike.keys() == {"0", "1"}  # 4 and 16 concepts are more than there are
    assert alike["0"] == pytest.approx(1.0)
    assert alike["1"] < 0.99


def test_what_no_training_keeps_stands_for_other_things():
    names = others.ordinary_things()
    assert len(set(names)) == others.THINGS
    held_out = {concept.name for concept in mini_concepts()}
    assert not any(name in held_out or set(name.split()) & set(COMMON_SUBJECTS) for name in names)


def test_a_job_that_somebody_else_is_at_is_left_for_later(tmp_path, monkeypatch):
    done, elsewhere = [], FileLock(tmp_path / "a.lock")
    elsewhere.acquire()
    monkeypatch.setattr(work.time, "sleep", lambda seconds: (done.append("waited"), elsewhere.release()))
    work_off([Job(name, tmp_path / f"{name}.lock", lambda name=name: done.append(name)) for name in ("a", "b")])
    assert done == ["b", "waited", "a"]


def test_an_experiment_goes_on_from_an_archive_with_what_it_lacks(tmp_path):
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "archive.json"
    runs.write_json(first / "experiment.json", {"passes": 300})
    runs.write_json(first / "tuning" / "lora.json", {"alpha": 0.1})
    runs.write_json(first / "results" / "main" / "a.json", {"system": "a"})
    runs.write_json(second / "tuning" / "lora.json", {"alpha": 0.2})
    archive.write_archive(first, file)
    archive.restore(file, second)
    assert runs.read_json(second / "results" / "main" / "a.json") == {"system": "a"}
    assert runs.read_json(second / "tuning" / "lora.json") == {"alpha": 0.2}


def test_an_archive_of_other_settings_is_refused(tmp_path):
    runs.write_json(tmp_path / "archive.json", {"experiment.json": {"passes": 300}})
    runs.write_json(tmp_path / "out" / "experiment.json", {"passes": 600})
    with pytest.raises(UserError, match=r"300.*600"):
        archive.restore(tmp_path / "archive.json", tmp_path / "out")


def test_an_archive_cannot_write_outside_its_experiment(tmp_path):
    runs.write_json(tmp_path / "archive.json", {"experiment.json": {}, "../evil.json": {}})
    with pytest.raises(UserError, match="outside"):
        archive.restore(tmp_path / "archive.json", tmp_path / "out")
    assert not (tmp_path / "evil.json").exists()
