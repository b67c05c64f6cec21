"""What fusions and diagnostics see of a loaded base."""

import pytest
import torch

from seqlora_core.composition.fusion import FusionSettings
from seqlora_core.composition.fusion.base_source import BaseSource
from seqlora_core.composition.selection import SelectedConcept
from seqlora_core.model.activations import input_group
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.base import load_base
from seqlora_core.model.sd15 import find_layers


@pytest.fixture(scope="module")
def base(base_folder):
    return load_base(str(base_folder))


def part(base, strength: float) -> SelectedConcept:
    generator = torch.Generator().manual_seed(0)
    adapters = {
        name: Adapter.from_factors(
            torch.randn(out, 2, generator=generator), torch.randn(width, 2, generator=generator) / width
        )
        for name, (width, out) in base.layers.items()
    }
    return SelectedConcept("dog", "ab dog", adapters, strength)


def test_words_are_encoded_where_they_stand_up_to_the_end_token(base):
    """The test tokenizer makes one token of each letter."""
    assert torch.equal(base.encode_words("ab"), base.encode_prompt("ab")[1:4])
    after = base.encode_words("ab", after="photo of a")
    assert torch.equal(after, base.encode_prompt("photo of a ab")[9:12])
    assert not torch.allclose(after, base.encode_words("ab"))


def test_every_layer_is_seen_with_the_concept_in_place(base):
    source = BaseSource(base, FusionSettings(sampling_steps=3, rows=2))
    plain, changed = (source.inputs(part(base, strength), base.layers) for strength in (0.0, 2.0))
    assert list(plain) == list(base.layers)
    first, *_, last = (name for name in base.layers if input_group(name) != "text")
    assert plain[last].samples.shape == (6, base.layers[last].width)
    assert not torch.allclose(plain[last].gram, changed[last].gram, rtol=1e-2)
    assert torch.equal(source.inputs(part(base, 2.0), [first])[first].gram, changed[first].gram)
    words = source.words(part(base, 2.0))
    assert len(words) == 2 * 6  # "ab dog" and the end token, alone and in a prompt
    assert all(torch.equal(changed[name].samples, words) for name in base.layers if input_group(name) == "text")
    layers = find_layers(base.pipeline.unet)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers.values())


def test_words_are_looked_at_without_a_pass_of_the_unet(base):
    text = [name for name in base.layers if input_group(name) == "text"]
    with base.pipeline.unet.register_forward_pre_hook(lambda *_: pytest.fail("the UNet ran")):
        assert list(BaseSource(base, FusionSettings()).inputs(part(base, 1.0), text)) == text


def test_the_weights_are_those_of_the_base(base):
    name, layer = next(iter(find_layers(base.pipeline.unet).items()))
    assert torch.equal(BaseSource(base, FusionSettings()).weight(name), layer.weight)
