"""Watching what layers read."""

import torch
from torch import nn

from seqlora_core.model.activations import LayerInputs, capture_inputs
from seqlora_core.model.sd15 import find_layers

TEXT = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
NOISY = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def test_the_gram_matrix_adds_up_the_inputs_of_every_pass():
    layer, passes = nn.Linear(5, 2), [torch.randn(4, 3, 5), torch.randn(1, 6, 5)]
    (inputs,) = capture_inputs({"a": layer}, lambda: [layer(x) for x in passes]).values()
    rows = torch.cat([x.reshape(-1, 5) for x in passes])
    assert inputs.tokens == 18
    assert torch.allclose(inputs.gram, rows.mT @ rows, atol=1e-5)
    assert torch.allclose(inputs.covariance, rows.mT @ rows / 18, atol=1e-6)
    assert inputs.samples.shape == (0, 5)


def test_kept_rows_are_evenly_spaced_and_in_order():
    layer, x = nn.Linear(5, 2), torch.randn(1, 9, 5)
    (inputs,) = capture_inputs({"a": layer}, lambda: [layer(x), layer(2 * x)], samples_per_pass=3).values()
    assert torch.equal(inputs.samples, torch.cat([x[0, [0, 4, 8]], 2 * x[0, [0, 4, 8]]]))
    (all_of_them,) = capture_inputs({"a": layer}, lambda: layer(x), samples_per_pass=100).values()
    assert torch.equal(all_of_them.samples, x[0])


def test_every_layer_of_a_unet_is_covered_by_what_it_reads(denoiser):
    """Layers that share an input are watched once; the result is that of watching each alone."""
    layers = find_layers(denoiser.unet)

    def run() -> None:
        denoiser.predict_noise(NOISY, torch.tensor([3, 700]), TEXT)

    shared = capture_inputs(layers, run)
    assert list(shared) == list(layers)
    for name in list(layers)[:8]:
        (alone,) = capture_inputs({name: layers[name]}, run).values()
        assert torch.allclose(shared[name].gram, alone.gram, rtol=1e-4, atol=1e-4)
    text = shared["mid_block.attentions.0.transformer_blocks.0.attn2.to_v"]
    assert torch.allclose(text.covariance, LayerInputs.from_samples(TEXT.flatten(0, 1)).covariance, atol=1e-5)
    assert not any(layer._forward_pre_hooks for layer in layers.values())
