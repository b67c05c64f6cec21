"""Keeping out of what earlier concepts read: the term against its definition, and what it does to a training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_runs import StopAfter, equal, factors, learn, random_concept, resolved

from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.errors import Cancelled
from seqlora_core.model.adapters import attach
from seqlora_core.model.sd15 import SD15, find_layers, sd15_alphas_cumprod
from seqlora_core.training.interference_penalty import watch_protected
from seqlora_core.training.protected_prompts import protected_prompts
from seqlora_core.training.trainer import RunOptions, train_concept


def with_prompts(seed: int, prompts: int = 2):
    """A concept's data, with as many prompts whose pictures it should leave alone."""
    generator = torch.Generator().manual_seed(100)
    data = random_concept(seed)
    return type(data)(data.examples, protected=torch.randn(prompts, 7, 32, generator=generator))


def interference(denoiser, data, own: dict) -> float:
    """How far an adapter moves what the UNet makes of the protected prompts."""
    generator = torch.Generator().manual_seed(5)
    count = len(data.protected)
    noisy, timesteps = torch.randn(count, 4, 8, 8, generator=generator), torch.full((count,), 600)
    with torch.no_grad():
        before = denoiser.predict_noise(noisy, timesteps, data.protected)
        with attach(find_layers(denoiser.unet), own):
            after = denoiser.predict_noise(noisy, timesteps, data.protected)
    return (after - before).square().mean().item()


def test_protected_prompts_are_measured_alike_in_batches_of_any_size(denoiser):
    layers, prompts = find_layers(denoiser.unet), with_prompts(1, 5).protected
    few, many = (
        watch_protected(denoiser, layers, prompts, (8, 8), 0, batch, lambda done: None) for batch in (1, len(prompts))
    )
    assert few.energies == pytest.approx(many.energies, rel=1e-4)
    for layer in layers:
        assert torch.allclose(few.covariances[layer], many.covariances[layer], rtol=1e-3, atol=1e-5)


def test_the_term_is_for_every_prompt_the_energy_of_the_interference_beside_that_of_the_layer():
    generator = torch.Generator().manual_seed(0)
    layer, seen = nn.Linear(6, 5), []

    def predict_noise(noisy, timesteps, text):
        seen.append(text.flatten(0, 1) * (1 + timesteps[0] / 1000))
        layer(seen[-1])
        return torch.zeros_like(noisy)

    denoiser = SimpleNamespace(
        device=torch.device("cpu"),
        alphas_cumprod=sd15_alphas_cumprod(),
        architecture=SD15,
        predict_noise=predict_noise,
    )
    kept = watch_protected(
        denoiser, {"layer": layer}, torch.randn(3, 4, 6, generator=generator), (2, 2), 0, 2, lambda done: None
    )
    term = kept.penalty(0.7)
    A, B, x = torch.randn(5, 2, generator=generator), torch.randn(6, 2, generator=generator), torch.cat(seen)
    share = (x @ B @ A.T).square().sum() / layer(x).square().sum()
    assert term([A], [B]).item() == pytest.approx(3 * 0.7 * share.item(), rel=1e-4)


def test_a_later_concept_moves_the_pictures_of_earlier_ones_less(denoiser, bank):
    data, moved = with_prompts(7), {}
    learn(denoiser, bank, "first", steps=2)
    for weight in (0.0, 1.0):
        learn(denoiser, bank, f"with {weight}", data, steps=40, lr_coefficients=1e-2, interference_penalty=weight)
        moved[weight] = interference(denoiser, data, factors(bank, f"with {weight}"))
        bank.remove(f"with {weight}")
    assert moved[1.0] < 0.5 * moved[0.0]


def test_the_first_concept_leaves_the_empty_prompt_more_alone(denoiser, bank):
    data, moved = with_prompts(7, prompts=1), {}
    for weight in (0.0, 1.0):
        learn(denoiser, bank, "first", data, steps=40, lr_coefficients=1e-2, interference_penalty=weight)
        moved[weight] = interference(denoiser, data, factors(bank, "first"))
        bank.remove("first")
    assert moved[1.0] < 0.5 * moved[0.0]


def test_keys_and_values_of_the_text_need_one_small_pass_and_give_what_many_do(denoiser):
    layers, passes = find_layers(denoiser.unet, "cross-kv"), []
    prompts = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    handle = denoiser.unet.register_forward_pre_hook(lambda _, inputs: passes.append(tuple(inputs[0].shape)))
    kept = watch_protected(denoiser, layers, prompts, (64, 96), 0, 1, lambda done: None)
    handle.remove()
    rows = prompts.flatten(0, 1)
    assert passes == [(3, 4, 8, 8)]
    for name, layer in layers.items():
        assert torch.allclose(kept.covariances[name], rows.mT @ rows / len(rows), atol=1e-5)
        assert kept.energies[name] == pytest.approx(layer(rows).square().sum(1).mean().item(), rel=1e-4)


def encoded_prompts(denoiser, bank, spec: ConceptSpec) -> list[str]:
    """The prompts that a training run asks to have encoded."""
    asked = []

    def encode(prompts, words):
        asked.extend(prompts)
        raise Cancelled

    with pytest.raises(Cancelled):
        train_concept(denoiser, encode, bank, spec, resolved(), options=RunOptions(replace=True))
    return asked


def test_prompts_to_keep_are_of_other_concepts_strangers_ordinary_things_and_nothing(denoiser, bank):
    none = protected_prompts([], "dog")
    assert none[-4:] == [""] * 4
    assert len(set(none)) > 20
    for name in ("first", "second"):
        learn(denoiser, bank, name, steps=1)
    subjects = {concept.name: f"photo of a {concept.subject}" for concept in bank.refresh().concepts}
    assert encoded_prompts(denoiser, bank, ConceptSpec("third", "sks", "dog")) == [*subjects.values(), *none]
    assert encoded_prompts(denoiser, bank, ConceptSpec("first", "sks", "dog")) == [subjects["second"], *none]


def test_nothing_of_the_new_concept_s_class_is_kept_as_it_is():
    kept = protected_prompts([], "Old Tree")
    assert not any(prompt.endswith(" tree") for prompt in kept)
    assert any(prompt.endswith(" tree") for prompt in protected_prompts([], "dog"))


def test_only_seqlora_has_it_unless_asked_for(denoiser, bank):
    learn(denoiser, bank, "first", steps=1)
    results = {}
    for weight in (None, 0.0, 0.5):
        learn(denoiser, bank, "second", with_prompts(3), method="alternating", interference_penalty=weight)
        results[weight] = factors(bank, "second")
        bank.remove("second")
    assert equal(results[None], results[0.0])
    assert not equal(results[None], results[0.5])


@pytest.mark.parametrize("settings", [{}, {"init": "random"}, {"optimizer": "gradient"}])
def test_a_training_that_keeps_out_of_the_way_resumes_to_exactly_the_uninterrupted_tensors(denoiser, bank, settings):
    learn(denoiser, bank, "first", steps=1)
    results = []
    for stop in (None, StopAfter(3)):
        if stop:
            with pytest.raises(Cancelled):
                learn(denoiser, bank, "second", with_prompts(2), stop, steps=7, **settings)
        learn(denoiser, bank, "second", with_prompts(2), options=RunOptions(resume=True), steps=7, **settings)
        results.append(factors(bank, "second"))
        bank.remove("second")
    assert equal(*results)


def test_the_basis_of_seqlora_alone_is_stepped_in_coordinates_of_its_own(denoiser, bank):
    learn(denoiser, bank, "first", steps=1)
    results = {}
    for method in ("seqlora", "alternating"):
        for coordinates in (None, "plain", "contrastive"):
            learn(denoiser, bank, "second", with_prompts(3), method=method, coordinates=coordinates)
            results[coordinates] = factors(bank, "second")
            bank.remove("second")
        assert not equal(results["plain"], results["contrastive"])
        assert equal(results[None], results["contrastive" if method == "seqlora" else "plain"])


def test_a_stop_while_earlier_concepts_are_drawn_comes_at_once_and_is_said(denoiser, bank):
    learn(denoiser, bank, "first", steps=1)
    monitor = StopAfter(0)
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "second", with_prompts(2), monitor)
    assert any("protected prompts" in message for message in monitor.messages)


def test_who_gives_no_prompts_to_keep_is_told(denoiser, bank):
    told = {}
    for name, data, settings in (
        ("without", random_concept(3), {}),
        ("with", with_prompts(2), {}),
        ("needless", random_concept(3), {"method": "alternating"}),
    ):
        monitor = StopAfter(99)
        learn(denoiser, bank, name, data, monitor, steps=1, **settings)
        told[name] = any("No protected prompts" in message for message in monitor.messages)
    assert told == {"without": True, "with": False, "needless": False}


@pytest.mark.parametrize("when", range(3))
def test_a_stop_is_heard_while_the_inputs_of_a_concept_are_read(denoiser, bank, when):
    class Asked(StopAfter):
        asked = 0

        def cancelled(self) -> bool:
            self.asked += 1
            return self.asked > when

    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", monitor=(monitor := Asked(9)), init="spectral")
    assert monitor.done == 0
