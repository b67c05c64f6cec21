"""Training concepts one after another: what is guaranteed, resuming, stopping, and what is refused."""

import dataclasses
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import tiny_base
import torch
from training_runs import StopAfter, encoded, equal, factors, learn, random_concept, resolved, spec

from seqlora_core.bank import Bank, BaseIdentity
from seqlora_core.bank.inspection import inspect
from seqlora_core.composition.concatenation import compose
from seqlora_core.data.dataset import EncodedConcept, Example
from seqlora_core.errors import Cancelled, TrainingDiverged, UserError
from seqlora_core.model.adapters import attach
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.model.sd15 import find_layers, sd15_alphas_cumprod
from seqlora_core.training.checkpoint import Checkpoint
from seqlora_core.training.minibatches import draw_minibatches
from seqlora_core.training.objective import DenoisingObjective, heldout_loss
from seqlora_core.training.plan import already_trained, next_version
from seqlora_core.training.trainer import RunOptions, train_concept


def test_five_concepts_of_different_ranks_stay_orthogonal_after_one_was_removed(denoiser, bank):
    for name, rank, method in (("a", 2, "seqlora"), ("b", 4, "alternating"), ("c", 1, "seqlora")):
        learn(denoiser, bank, name, rank=rank, method=method, steps=6)
    bank.remove("b")
    for name, rank, method in (("d", 3, "orthogonal"), ("e", 4, "seqlora"), ("f", 2, "inflora")):
        learn(denoiser, bank, name, rank=rank, method=method, init="spectral" if name == "e" else "random")
    result = inspect(Bank.open(bank.folder))
    assert [concept.name for concept in bank.concepts] == ["a", "c", "d", "e", "f"]
    assert result.ok
    assert result.max_overlap <= 1e-5
    assert {layer["used"] for layer in result.layers.values()} == {2 + 1 + 3 + 4 + 2}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "gradient", "lr_coefficients": 3.0, "lr_basis": 3.0, "clip": 0},
        {"method": "alternating"},
        {"method": "orthogonal"},
        {"method": "inflora"},
        {"method": "lora"},
        {"method": "c-lora"},
        {"dtype": "bfloat16"},
        {"hypergradient": "exact"},
        {"init": "spectral", "layers": "cross"},
        {"bilevel_iterations": 2, "inner_steps": 2, "hypergradient": "finite-difference"},
    ],
)
def test_training_lowers_the_denoising_loss_of_its_images(denoiser, bank, settings):
    data = random_concept(1)
    config = resolved(batch_size=2)
    before = heldout_loss(denoiser, data, config, 20)
    learn(denoiser, bank, "a", data, **{"steps": 40, "lr_coefficients": 5e-3, "lr_basis": 5e-3, **settings})
    with attach(find_layers(denoiser.unet), factors(bank, "a")):
        after = heldout_loss(denoiser, data, config, 20)
    assert after < before - 0.005


def test_later_concepts_do_not_touch_the_earlier_span(denoiser, bank):
    """Proposition 1: the part of x_i inside span(B_i) does not see later concepts."""
    learn(denoiser, bank, "first", steps=6, lr_coefficients=1e-2)
    learn(denoiser, bank, "second", steps=6, lr_coefficients=1e-2)
    first, second = factors(bank, "first"), factors(bank, "second")
    generator = torch.Generator().manual_seed(0)
    for layer in first:
        inside = first[layer].B @ torch.randn(2, 50, generator=generator)  # [n, 50], columns in span(B_1)
        A, B = second[layer].factors
        outside = torch.randn(inside.shape, generator=generator)
        outside *= inside.norm() / outside.norm()
        assert float((A @ (B.mT @ inside)).norm()) <= 1e-5 * float((A @ (B.mT @ outside)).norm())


def test_accumulated_training_sees_the_earlier_concepts_and_bare_training_does_not(denoiser, bank):
    learn(denoiser, bank, "first", steps=8, lr_coefficients=5e-2, lr_basis=5e-2)
    data = random_concept(7)
    accumulated = learn(denoiser, bank, "x", data, steps=1, train_on="accumulated").metrics["first_loss"]
    bare = learn(denoiser, bank, "y", data, steps=1, train_on="bare").metrics["first_loss"]
    empty = Bank.open_or_create(bank.folder.parent / "other", bank.manifest.base, bank.manifest.layers)
    alone = learn(denoiser, empty, "x", data, steps=1).metrics["first_loss"]
    assert bare == pytest.approx(alone, abs=1e-6)
    assert abs(accumulated - alone) > 1e-4


def test_training_on_subsets_sees_all_earlier_concepts_and_none_in_turn(denoiser, bank):
    for name in ("first", "second"):
        learn(denoiser, bank, name, steps=8, lr_coefficients=5e-2, lr_basis=5e-2)
    data, curves = random_concept(7), {}
    for train_on in ("alternate", "accumulated", "bare"):
        still = {"lr_coefficients": 1e-12, "lr_basis": 1e-12}  # so that losses differ by what the model holds alone
        concept = learn(denoiser, bank, train_on, data, steps=6, train_on=train_on, interference_penalty=0.0, **still)
        curves[train_on] = concept.metrics["loss_curve"]
        bank.remove(train_on)
    assert min(abs(a - b) for a, b in zip(curves["accumulated"], curves["bare"], strict=True)) > 1e-4
    assert curves["alternate"][::2] == pytest.approx(curves["accumulated"][::2], abs=1e-5)
    assert curves["alternate"][1::2] == pytest.approx(curves["bare"][1::2], abs=1e-5)


def test_the_pictures_of_a_batch_take_turns_too(denoiser):
    data = dataclasses.replace(random_concept(2), prior=random_concept(3).examples)
    config = resolved(batch_size=3, accumulation=2, train_on="alternate")
    steps = [draw_minibatches(data, denoiser, config, step) for step in range(2)]
    for of_one_kind in (slice(0, None, 2), slice(1, None, 2)):  # images of the concept, and of its class
        seen = [minibatch.with_earlier for step in steps for minibatch in step[of_one_kind]]
        assert sum(seen, ()) == (True, False) * 6


def test_the_same_seed_gives_the_same_tensors_and_another_does_not(denoiser, bank):
    data = random_concept(3)
    results = []
    for seed in (1, 1, 2):
        learn(denoiser, bank, "a", data, seed=seed)
        results.append(factors(bank, "a"))
        bank.remove("a")
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


@pytest.mark.parametrize(
    "settings", [{}, {"optimizer": "gradient"}, {"average": 1.0}, {"method": "lora"}, {"method": "inflora"}]
)
@pytest.mark.parametrize("error", [None, RuntimeError("out of memory")])
def test_a_stopped_training_resumes_to_exactly_the_uninterrupted_tensors(denoiser, bank, settings, error):
    data = random_concept(4)
    learn(denoiser, bank, "part", data, steps=7, **settings)
    uninterrupted = factors(bank, "part")
    bank.remove("part")
    stop = StopAfter(3, error)
    with pytest.raises(Cancelled if error is None else RuntimeError):
        learn(denoiser, bank, "part", data, stop, steps=7, **settings)
    assert stop.done == 3
    assert bank.refresh().concepts == ()
    learn(denoiser, bank, "part", data, options=RunOptions(resume=True), steps=7, **settings)
    assert equal(factors(bank, "part"), uninterrupted)
    assert not bank.checkpoint_path("part").exists()


def test_half_precision_needs_no_autocast_where_there_is_none():
    """DirectML: torch says that there is one of its kind of device, and fails to enter it."""
    device = torch.device("privateuseone")
    denoiser = SimpleNamespace(device=device, predict_noise=lambda noisy, timesteps, text: noisy)
    objective = DenoisingObjective(denoiser, {}, "float16")
    assert objective.predict_noise([], [], torch.ones(1), torch.ones(1), torch.ones(1)).dtype == torch.float32


def test_a_stopped_run_says_up_to_which_step_it_is_saved(denoiser, bank, monkeypatch):
    def stopped(steps: int) -> str:
        with pytest.raises(Cancelled):
            learn(denoiser, bank, "a", monitor=(monitor := StopAfter(steps)), options=RunOptions(resume=True), steps=7)
        return monitor.stopped_at

    assert stopped(0) == "before the first step, and nothing was lost"
    assert stopped(3) == "at step 3 of 7"
    monkeypatch.setattr(Checkpoint, "save", Mock(side_effect=OSError("full")))
    assert stopped(5) == "at step 5 of 7, which could not be saved"


NAMED = {"settings": "rank", "data": "data", "bank": "concepts before", "base": "base model"}


@pytest.mark.parametrize("change", NAMED)
def test_resuming_another_training_is_refused_and_keeps_the_checkpoint(denoiser, bank, change):
    data = random_concept(4)
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", data, StopAfter(2))
    if change == "bank":
        learn(denoiser, bank, "b")
    if change == "base":
        bank = Bank.open_or_create(bank.folder, BaseIdentity("other", "0" * 32), bank.manifest.layers)
    settings = {"rank": 3} if change == "settings" else {}
    with pytest.raises(UserError, match=NAMED[change]):
        learn(
            denoiser,
            bank,
            "a",
            random_concept(5) if change == "data" else data,
            options=RunOptions(resume=True),
            **settings,
        )
    assert bank.checkpoint_path("a").is_file()


def test_a_full_layer_is_left_out_and_the_user_is_told_before_training(denoiser, bank):
    learn(denoiser, bank, "wide", rank=20, steps=1)
    monitor = StopAfter(99)
    concept = learn(denoiser, bank, "more", rank=20, steps=1, monitor=monitor)
    assert set(concept.layers_skipped) == {name for name, shape in bank.manifest.layers.items() if shape.width == 32}
    assert "left out" in monitor.messages[0]
    assert inspect(bank).ok


def test_a_rank_larger_than_the_free_space_is_refused_before_the_data_is_encoded(denoiser, bank):
    def encode(prompts):
        raise AssertionError("encoded")

    with pytest.raises(UserError, match="No layer has room for rank 65"):
        learn(denoiser, bank, "a", encode, rank=65)


def test_replacing_frees_the_old_directions_and_comes_last(denoiser, bank):
    for name in ("a", "b"):
        learn(denoiser, bank, name, rank=8, steps=1)
    with pytest.raises(UserError, match="already has"):
        learn(denoiser, bank, "A", rank=24, steps=1)
    learn(denoiser, bank, "a", rank=24, steps=1, options=RunOptions(replace=True))
    assert [concept.name for concept in bank.refresh().concepts] == ["b", "a"]
    assert {layer["used"] for layer in inspect(bank).layers.values()} == {8 + 24}


def test_what_is_already_trained_is_known_by_its_data_and_settings(denoiser, bank):
    data = dataclasses.replace(random_concept(1), source="hash of the pictures")
    config = resolved(steps=1, rank=2)
    concept = train_concept(denoiser, encoded(data), bank, spec("a"), config)
    bank.refresh()
    assert already_trained(bank, spec("A"), config, "hash of the pictures") is None  # another token
    for machine in ({}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True}):
        same = dataclasses.replace(config, **machine)
        assert already_trained(bank, spec("a"), same, "hash of the pictures") == concept
    assert already_trained(bank, spec("a"), config, "other pictures") is None
    assert already_trained(bank, spec("a"), resolved(steps=2, rank=2), "hash of the pictures") is None
    assert already_trained(bank, spec("b"), config, "hash of the pictures") is None


def test_changed_settings_get_the_next_version_and_unchanged_ones_find_theirs(denoiser, bank):
    data = dataclasses.replace(random_concept(1), source="pictures")
    settings = [resolved(steps=1, rank=rank) for rank in (1, 2, 3)]
    for config, name in zip(settings, ("a", "a v2", "a v3"), strict=True):
        version = next_version(bank, spec("a"), config, "pictures")
        assert version.name == name
        train_concept(denoiser, encoded(data), bank, version, config)
        bank.refresh()
    assert next_version(bank, spec("a"), settings[1], "pictures").name == "a v2"
    assert next_version(bank, spec("a"), settings[1], "other pictures").name == "a v4"


def test_a_changed_checkpoint_can_be_left_behind_and_that_is_told(denoiser, bank):
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", monitor=StopAfter(1))
    watched = StopAfter(99)
    learn(denoiser, bank, "a", monitor=watched, options=RunOptions(resume=True, restart_if_changed=True), rank=3)
    assert bank.refresh().concept("a").rank == 3
    assert "Starting again at step 0 instead of 1: its rank was 2 and is now 3." in watched.messages


@pytest.mark.parametrize("restart_if_changed", [False, True])
def test_a_training_that_ran_out_of_memory_is_resumed_with_gradient_checkpointing(denoiser, bank, restart_if_changed):
    with pytest.raises(RuntimeError):
        learn(denoiser, bank, "a", monitor=StopAfter(2, RuntimeError("out of memory")))
    watched, options = StopAfter(99), RunOptions(resume=True, restart_if_changed=restart_if_changed)
    learn(denoiser, bank, "a", monitor=watched, options=options, gradient_checkpointing=True)
    assert "Resuming at step 2 of 4." in watched.messages


def test_a_cancelled_replacement_leaves_the_old_concept(denoiser, bank):
    learn(denoiser, bank, "a")
    old = factors(bank, "a")
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", monitor=StopAfter(1), options=RunOptions(replace=True), steps=5)
    assert equal(old, factors(bank, "a"))


@pytest.mark.parametrize("method", ["seqlora", "alternating", "orthogonal", "inflora", "lora", "c-lora"])
def test_training_leaves_the_unet_as_it_was(denoiser, bank, method):
    before = {name: value.clone() for name, value in denoiser.unet.state_dict().items()}
    learn(denoiser, bank, "a", method=method, gradient_checkpointing=True)
    assert all(torch.equal(value, before[name]) for name, value in denoiser.unet.state_dict().items())
    assert not any(module._forward_hooks for module in denoiser.unet.modules())
    assert not denoiser.unet.training


def test_gradient_checkpointing_changes_nothing_but_memory(denoiser, bank):
    data = random_concept(8)
    learn(denoiser, bank, "a", data)
    plain = factors(bank, "a")
    bank.remove("a")
    learn(denoiser, bank, "a", data, gradient_checkpointing=True)
    again = factors(bank, "a")
    for layer in plain:
        assert torch.allclose(plain[layer].A, again[layer].A, atol=1e-6)
        assert torch.allclose(plain[layer].B, again[layer].B, atol=1e-6)


def test_accumulated_minibatches_give_the_gradient_of_all_of_them():
    """On one image without noise in the latents, two micro-batches of one equal what each of them alone averages to."""
    denoiser = DiffusersDenoiser(tiny_base.make_unet((32, 64), 1, 32), sd15_alphas_cumprod())
    layers = find_layers(denoiser.unet)
    config = resolved(rank=2, accumulation=2)
    objective = DenoisingObjective(denoiser, layers, config.dtype)
    A = [torch.zeros(layer.out_features, 2) for layer in layers.values()]
    B = [torch.randn(layer.in_features, 2, generator=torch.Generator().manual_seed(0)) for layer in layers.values()]
    batches = draw_minibatches(random_concept(1), denoiser, config, 0)
    with objective.attached():
        losses, gradients = [], []
        for chosen in (batches[:1], batches[1:], batches):
            objective.use(chosen)
            loss, dL_dA, _ = objective.gradients(A, B)
            losses.append(float(loss))
            gradients.append(dL_dA[0])
    assert losses[2] == pytest.approx(losses[0] + losses[1])
    assert torch.allclose(gradients[2], gradients[0] + gradients[1], atol=1e-7)


def test_the_loss_counts_only_inside_the_mask(denoiser, bank):
    """Pixels outside the mask may hold anything at all."""
    generator = torch.Generator().manual_seed(0)
    mean, text = torch.randn(4, 8, 8, generator=generator), torch.randn(1, 7, 32, generator=generator)
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    masked = learn(denoiser, bank, "a", EncodedConcept([Example(mean, text, mask=mask)]), steps=1).metrics["first_loss"]
    whole = learn(denoiser, bank, "b", EncodedConcept([Example(mean, text)]), steps=1).metrics["first_loss"]
    assert masked != pytest.approx(whole)
    with pytest.raises(UserError, match="mask is empty"):
        EncodedConcept([Example(mean, text, mask=torch.zeros(1, 8, 8))])


def test_class_images_add_their_own_weighted_loss(denoiser, bank):
    data = random_concept(1, prior=2)
    alone = learn(denoiser, bank, "a", random_concept(1, prior=2), steps=1, prior_weight=0, ridge=0)
    half = learn(denoiser, bank, "b", data, steps=1, prior_weight=0.5, ridge=0, train_on="bare")
    full = learn(denoiser, bank, "c", data, steps=1, prior_weight=1.0, ridge=0, train_on="bare")
    prior = full.metrics["first_loss"] - alone.metrics["first_loss"]
    assert prior > 0
    assert half.metrics["first_loss"] == pytest.approx(alone.metrics["first_loss"] + prior / 2, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_training(denoiser, bank):
    with pytest.raises(TrainingDiverged, match="lr_coefficients"):
        learn(denoiser, bank, "a", steps=20, optimizer="gradient", lr_coefficients=1e6, lr_basis=1e6, clip=0)
    assert bank.refresh().concepts == ()


def test_the_composed_concepts_act_like_the_trained_ones(denoiser, bank):
    """The accumulated model right after training and the composition of all concepts are one and the same."""
    for name in ("a", "b"):
        learn(denoiser, bank, name, steps=5, lr_coefficients=1e-2)
    layers = find_layers(denoiser.unet)
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.tensor([50]),
        torch.randn(1, 7, 32, generator=generator),
    )
    with torch.no_grad():
        with attach(layers, factors(bank, "a")), attach(layers, factors(bank, "b")):
            both = denoiser.predict_noise(*inputs)
        with attach(layers, compose(bank, [("b", 1.0), ("a", 1.0)])):
            composed = denoiser.predict_noise(*inputs)
    assert torch.allclose(both, composed, atol=1e-5)
