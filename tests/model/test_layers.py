"""Finding, naming and adapting layers."""

import pytest
import tiny_base
import torch

from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter, attach
from seqlora_core.model.sd15 import canonical_names, find_layers

TEXT = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
TIMES = torch.tensor([3, 700])


def random_adapters(layers, rank=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Adapter.from_factors(
            torch.randn(layer.out_features, rank, generator=generator) / 8,
            torch.randn(layer.in_features, rank, generator=generator) / 8,
        )
        for name, layer in layers.items()
    }


@pytest.mark.parametrize(("preset", "per_block"), [("all", 8), ("cross", 4), ("cross-kv", 2)])
def test_presets_pick_their_projections_of_every_block(denoiser, preset, per_block):
    layers = find_layers(denoiser.unet, preset)
    blocks = {name.rsplit(".attn", 1)[0] for name in layers}
    assert len(blocks) == 4  # down, mid, and two on the way up
    assert len(layers) == per_block * len(blocks)


@pytest.mark.parametrize(
    ("channels", "per_level"), [((32, 64, 64, 64), 2), ((32, 64), 1), ((32, 32, 64), 3), ((32, 64), 2)]
)
def test_the_original_layout_maps_onto_the_same_names(channels, per_level):
    """Every adapted diffusers path, renamed to the original layout by an independent rule, comes back."""
    unet = tiny_base.make_unet(channels, per_level, 32)
    originals = {
        tiny_base._unet_key(f"{name}.weight", per_level).removesuffix(".weight"): name
        for name, module in unet.named_modules()
        if not list(module.children()) and list(module.parameters())
    }
    wanted = find_layers(unet)
    mapped = canonical_names(originals)
    assert {originals[original] for original in mapped} == set(wanted)
    assert all(originals[original] == canonical for original, canonical in mapped.items())


def test_a_model_without_attention_is_refused():
    with pytest.raises(UserError, match="attention"):
        find_layers(torch.nn.Sequential(torch.nn.Linear(3, 3)))


def test_an_adapter_adds_its_product_to_the_weight(denoiser):
    """The same output as a UNet whose weights were changed to W0 + A B^T."""
    unet = tiny_base.make_unet((32, 64), 1, 32)
    layers = find_layers(unet)
    adapters = random_adapters(layers)
    with torch.no_grad():
        with attach(layers, adapters):
            adapted = unet(NOISY, TIMES, TEXT).sample
        for name, layer in layers.items():
            layer.weight += adapters[name].A @ adapters[name].B.mT
        merged = unet(NOISY, TIMES, TEXT).sample
    assert torch.allclose(adapted, merged, atol=1e-4)


def test_rows_of_a_batch_can_be_left_out(denoiser):
    layers = find_layers(denoiser.unet)
    adapters = random_adapters(layers)
    with torch.no_grad():
        plain = denoiser.predict_noise(NOISY, TIMES, TEXT)
        with attach(layers, adapters):
            adapted = denoiser.predict_noise(NOISY, TIMES, TEXT)
        with attach(layers, adapters, lambda: torch.tensor([True, False])):
            mixed = denoiser.predict_noise(NOISY, TIMES, TEXT)
    assert torch.allclose(mixed[0], adapted[0], atol=1e-5) and torch.allclose(mixed[1], plain[1], atol=1e-5)
    assert not torch.allclose(plain, adapted, atol=1e-3)


def test_removing_every_adapter_leaves_the_output_bit_identical(denoiser):
    layers = find_layers(denoiser.unet)
    with torch.no_grad():
        before = denoiser.predict_noise(NOISY, TIMES, TEXT)
        with attach(layers, random_adapters(layers)):
            during = denoiser.predict_noise(NOISY, TIMES, TEXT)
        after = denoiser.predict_noise(NOISY, TIMES, TEXT)
    assert torch.equal(before, after)
    assert not torch.allclose(before, during, atol=1e-3)


def test_adapters_are_removed_when_the_block_is_left_by_an_error(denoiser):
    layers = find_layers(denoiser.unet)
    with torch.no_grad():
        before = denoiser.predict_noise(NOISY, TIMES, TEXT)
        with pytest.raises(RuntimeError), attach(layers, random_adapters(layers)):
            raise RuntimeError
        assert torch.equal(before, denoiser.predict_noise(NOISY, TIMES, TEXT))
