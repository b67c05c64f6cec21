"""Keeping out of what earlier concepts read: the term against its definition, and what it does to a training."""

from types import SimpleNamespace

import pytest
import torch
from conftest import random_concept
from test_trainer import StopAfter, equal, factors, learn
from torch import nn

from seqlora_core.crosstalk import measure_crosstalk
from seqlora_core.denoiser import sd15_alphas_cumprod
from seqlora_core.errors import Cancelled
from seqlora_core.layers import attached, find_layers


def with_earlier(seed: int, prompts: int = 2):
    """A concept's data, in a bank that has as many earlier ones."""
    generator = torch.Generator().manual_seed(100)
    data = random_concept(seed)
    return type(data)(data.examples, earlier=torch.randn(prompts, 7, 32, generator=generator))


def interference(denoiser, data, own: dict) -> float:
    """How far an adapter moves what the UNet makes of the earlier concepts' prompts."""
    generator = torch.Generator().manual_seed(5)
    count = len(data.earlier)
    noisy, timesteps = torch.randn(count, 4, 8, 8, generator=generator), torch.full((count,), 600)
    with torch.no_grad():
        before = denoiser.predict_noise(noisy, timesteps, data.earlier)
        with attached(find_layers(denoiser.unet), own):
            after = denoiser.predict_noise(noisy, timesteps, data.earlier)
    return (after - before).square().mean().item()


def test_the_term_is_the_energy_of_the_interference_beside_that_of_the_layer():
    generator = torch.Generator().manual_seed(0)
    layer, seen = nn.Linear(6, 5), []

    def predict_noise(noisy, timesteps, text):
        seen.append(text.flatten(0, 1) * (1 + timesteps[0] / 1000))
        layer(seen[-1])
        return torch.zeros_like(noisy)

    denoiser = SimpleNamespace(
        device=torch.device("cpu"), alphas_cumprod=sd15_alphas_cumprod(), predict_noise=predict_noise
    )
    term = measure_crosstalk(
        denoiser, {"layer": layer}, torch.randn(3, 4, 6, generator=generator), (2, 2), 0.7, 0, 2, lambda: None
    )
    A, B, x = torch.randn(5, 2, generator=generator), torch.randn(6, 2, generator=generator), torch.cat(seen)
    share = (x @ B @ A.T).square().sum() / layer(x).square().sum()
    assert term([A], [B]).item() == pytest.approx(0.7 * share.item(), rel=1e-4)


def test_a_later_concept_moves_the_pictures_of_earlier_ones_less(denoiser, bank):
    data, moved = with_earlier(7), {}
    learn(denoiser, bank, "first", steps=2)
    for weight in (0.0, 1.0):
        learn(denoiser, bank, f"with {weight}", data, steps=40, alpha=1e-2, crosstalk=weight)
        moved[weight] = interference(denoiser, data, factors(bank, f"with {weight}"))
        bank.remove(f"with {weight}")
    assert moved[1.0] < 0.5 * moved[0.0]


def test_the_first_concept_has_nobody_to_keep_out_of_the_way_of(denoiser, bank):
    learn(denoiser, bank, "a", random_concept(1), crosstalk=1.0)
    kept = factors(bank, "a")
    bank.remove("a")
    learn(denoiser, bank, "a", random_concept(1), crosstalk=0.0)
    assert equal(kept, factors(bank, "a"))


def test_only_seqlora_has_it_unless_asked_for(denoiser, bank):
    learn(denoiser, bank, "first", steps=1)
    results = {}
    for weight in (None, 0.0, 0.5):
        learn(denoiser, bank, "second", with_earlier(3), method="alternating", crosstalk=weight)
        results[weight] = factors(bank, "second")
        bank.remove("second")
    assert equal(results[None], results[0.0])
    assert not equal(results[None], results[0.5])


def test_a_stop_while_earlier_concepts_are_drawn_comes_at_once_and_is_said(denoiser, bank):
    learn(denoiser, bank, "first", steps=1)
    monitor = StopAfter(0)
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "second", with_earlier(2), monitor)
    assert any("earlier concepts" in message for message in monitor.messages)
