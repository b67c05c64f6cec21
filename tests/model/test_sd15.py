"""SD1.5's layers, their names in every layout and LoRA file, and what its architecture says."""

import pytest
import tiny_base
import torch

from seqlora_core.errors import UserError
from seqlora_core.model.sd15 import canonical_names, find_layers


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
