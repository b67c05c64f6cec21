"""Adapters: what they add to a layer, for which rows of a batch, and that they leave no trace."""

import pytest
import tiny_base
import torch

from seqlora_core.model.adapters import Adapter, attach, sum_adapters, update_norm
from seqlora_core.model.sd15 import find_layers

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
        with attach(layers, adapters, lambda: torch.tensor([0], device=denoiser.device)):
            mixed = denoiser.predict_noise(NOISY, TIMES, TEXT)
        with attach(layers, adapters, lambda: torch.tensor([], dtype=torch.long)):
            assert torch.equal(denoiser.predict_noise(NOISY, TIMES, TEXT), plain)
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


def test_a_sum_of_adapters_adds_the_sum_of_their_products():
    """Also for a layer that only one of them adapts."""
    generator = torch.Generator().manual_seed(0)

    def adapter(rank: int) -> Adapter:
        return Adapter(torch.randn(5, rank, generator=generator), torch.randn(rank, 4, generator=generator))

    first, second, alone = adapter(2), adapter(3), adapter(1)
    total = sum_adapters([({"a": first}, 0.5), ({"a": second, "b": alone}, -2.0)])
    assert torch.allclose(total["a"].up @ total["a"].down, 0.5 * first.up @ first.down - 2 * second.up @ second.down)
    assert torch.allclose(total["b"].up @ total["b"].down, -2 * alone.up @ alone.down)
    assert total["a"].rank == 5


def test_the_norm_of_an_update_is_that_of_its_product():
    adapter = Adapter(torch.randn(5, 3), torch.randn(3, 4))
    assert update_norm(adapter) == pytest.approx((adapter.up @ adapter.down).norm().item(), rel=1e-5)
