"""Sums of concepts, and their files in other software."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from training_runs import captioned, encoded, resolved

from seqlora_core.bank import Bank, NewConcept, lora_file
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.composition.concatenation import compose
from seqlora_core.composition.lora_files import save_composed, save_words
from seqlora_core.composition.selection import parse_selection, parse_selections
from seqlora_core.data.dataset import EncodedConcept, Example
from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter, attach, sum_adapters
from seqlora_core.model.base import load_base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.model.sd15 import find_layers
from seqlora_core.training.trainer import train_concept


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 4), st.floats(-2, 2), st.booleans()), min_size=1, max_size=5))
def test_the_sum_is_the_sum_of_the_parts_and_its_rank_the_sum_of_the_ranks(parts):
    generator = torch.Generator().manual_seed(0)
    adapters = [
        (
            {
                ("x" if flag else "y"): Adapter.from_factors(
                    torch.randn(5, r, generator=generator), torch.randn(7, r, generator=generator)
                )
            },
            s,
        )
        for r, s, flag in parts
    ]
    composed = sum_adapters(adapters)
    for layer, adapter in composed.items():
        A, B = adapter.factors
        present = [(part[layer], s) for part, s in adapters if layer in part]
        assert A.shape[1] == B.shape[1] == sum(a.A.shape[1] for a, _ in present)
        assert torch.allclose(A @ B.mT, sum(s * a.A @ a.B.mT for a, s in present), atol=1e-4)


def test_composing_file_by_file_is_the_sum_of_what_is_loaded(bank):
    """Also where concepts have other ranks in other layers, or leave some out."""
    generator = torch.Generator().manual_seed(0)
    for name, ranks in {"a": (1, 2, 0), "b": (3, 0, 0), "c": (2, 2, 0)}.items():
        adapters = {
            layer: Adapter.from_factors(
                torch.randn(shape.out, rank, generator=generator), torch.randn(shape.width, rank, generator=generator)
            )
            for (layer, shape), rank in zip(bank.manifest.layers.items(), ranks, strict=False)
            if rank
        }
        bank.add(NewConcept(name, f"sks{name}", "thing", max(ranks), "import", adapters))
    selection = [("c", 0.5), ("a", -1.0), ("b", 1.0)]
    composed, loaded = compose(bank, selection), bank.load()
    expected = sum_adapters([(loaded[name], strength) for name, strength in selection])
    assert composed.keys() == expected.keys()
    for layer, adapter in expected.items():
        assert torch.equal(composed[layer].up, adapter.up)
        assert torch.equal(composed[layer].down, adapter.down)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("dog", ("dog", 1.0)), (" my dog : -0.5", ("my dog", -0.5)), ("a:0", ("a", 0.0)), ("a:1e-1", ("a", 0.1))],
)
def test_selections_are_names_with_strengths(text, parsed):
    assert parse_selection(text) == parsed


def test_a_list_of_selections_takes_commas_and_lines():
    assert parse_selections("chair:1, my dog:0.8\n\ncat,") == [("chair", 1.0), ("my dog", 0.8), ("cat", 1.0)]
    assert parse_selections(" \n,") == []


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("<lora:dog:0.8> <lora:my cat:1>", [("dog", 0.8), ("my cat", 1.0)]),
        ("<lora:dog>", [("dog", 1.0)]),
        ("dog:0,8, my cat:-1,25", [("dog", 0.8), ("my cat", -1.25)]),
        ("dog:1,my cat", [("dog", 1.0), ("my cat", 1.0)]),
        ("dog:1,2", [("dog", 1.0), ("2", 1.0)]),
        ("dog 1 my cat 0.8", [("dog", 1.0), ("my cat", 0.8)]),
        ("dog:1 my cat=.8", [("dog", 1.0), ("my cat", 0.8)]),
        ("dog 1, my cat: 0.5", [("dog", 1.0), ("my cat", 0.5)]),
        ("sd 1.5 0.5, sd 1.5", [("sd 1.5", 0.5), ("sd 1.5", 1.0)]),
        ("bird 0.5", [("bird 0.5", 1.0)]),  # a name that the bank then refuses
    ],
)
def test_forms_of_other_tools_are_understood(text, parsed):
    assert parse_selections(text, ["dog", "my cat", "2", "sd 1.5"]) == parsed


@pytest.mark.parametrize("text", ["dog:", "dog:much", "dog:nan", "dog:inf", "dog:1:2"])
def test_a_strength_that_is_no_number_is_refused(text):
    with pytest.raises(UserError, match="not a number"):
        parse_selection(text)


@given(st.sampled_from(["down_blocks.1", "mid_block", "up_blocks.3"]), st.integers(0, 12), st.integers(0, 9))
def test_kohya_names_come_back(block, attention, depth):
    for attn, projection in itertools.product(("attn1", "attn2"), ("to_q", "to_k", "to_v", "to_out.0")):
        layer = f"{block}.attentions.{attention}.transformer_blocks.{depth}.{attn}.{projection}"
        assert lora_file.canonical_name(lora_file.kohya_name(layer)) == layer


def test_alpha_of_a_foreign_file_is_honoured():
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = lora_file.to_state_dict({layer: Adapter.from_factors(torch.ones(3, 4), torch.ones(5, 4))})
    tensors[f"{lora_file.kohya_name(layer)}.alpha"] = torch.tensor(1.0)
    (adapter,) = lora_file.from_state_dict(tensors).values()
    assert torch.allclose(adapter.A @ adapter.B.mT, torch.ones(3, 5))


@pytest.fixture(scope="module")
def trained(base_folder, tmp_path_factory):
    """A base with two trained concepts that clearly change its pictures."""
    base = load_base(str(base_folder))
    bank = Bank.open_or_create(tmp_path_factory.mktemp("bank") / "bank", base.identity, base.layers)
    generator = torch.Generator().manual_seed(0)
    for name in ("dog", "cat"):
        text = base.encode_prompt(f"photo of a {name}")[None]
        data = EncodedConcept([Example(torch.randn(4, 16, 16, generator=generator), text)])
        config = resolved(steps=3, rank=3 if name == "dog" else 2, lr_coefficients=0.05, lr_basis=0.05, layers="all")
        train_concept(base.denoiser(), encoded(data), bank, ConceptSpec(name, f"sks{name}", name), config)
    return base, bank


def test_a_composition_of_unknown_or_repeated_concepts_is_refused(trained):
    _, bank = trained
    with pytest.raises(UserError, match="no concept 'bird'; it has: dog, cat"):
        compose(bank, [("bird", 1.0)])
    with pytest.raises(UserError, match="more than once"):
        compose(bank, [("dog", 1.0), ("Dog", 0.5)])
    with pytest.raises(UserError, match="at least one"):
        compose(bank, [])


@pytest.mark.parametrize("selection", [[("dog", 1.0)], [("dog", 0.7), ("cat", -0.4)]])
def test_files_load_through_diffusers_and_act_as_generate_does(trained, base_folder, tmp_path, selection):
    """diffusers' own LoRA loading gives the same UNet output and the same picture as our adapters."""
    from diffusers import StableDiffusionPipeline

    base, bank = trained
    path = bank.folder / bank.concept("dog").file
    if len(selection) > 1:
        path = tmp_path / "sum.safetensors"
        save_composed(bank, selection, path, compose(bank, selection))
    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None, requires_safety_checker=False)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    loaded = {key for key, _ in pipeline.unet.named_parameters() if "lora_" in key}
    assert len(loaded) == 2 * 128

    inputs = torch.randn(1, 4, 16, 16), torch.tensor([400]), base.encode_prompt("photo of a sksdog dog")[None]
    layers = find_layers(base.pipeline.unet)
    with torch.no_grad():
        plain = base.denoiser().predict_noise(*inputs)
        with attach(layers, compose(bank, selection)):
            ours = base.denoiser().predict_noise(*inputs)
        theirs = pipeline.unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
    assert (ours - plain).abs().max() > 100 * (ours - theirs).abs().max()
    assert torch.allclose(ours, theirs, atol=1e-4)

    arguments = {"num_inference_steps": 3, "guidance_scale": 7.5, "height": 64, "width": 64}
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a dog", generator=[torch.Generator().manual_seed(5)], **arguments).images[0]
    own = generate(base, "a dog", compose(bank, selection), SamplingSettings(3, 64, seed=5))[0]
    difference = [abs(a - b) for a, b in zip(picture.tobytes(), own.tobytes(), strict=True)]
    assert max(difference) <= 1


def test_lora_and_word_load_through_diffusers_and_draw_what_generate_does(base_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    base = load_base(str(base_folder))
    bank = Bank.open_or_create(tmp_path / "bank", base.identity, base.layers)
    own = ConceptSpec("dog", "sksdog", "dog")
    config = resolved(steps=4, token_vectors=2, token_share=0.5, lr_coefficients=0.05, lr_basis=0.05, layers="all")
    encode = captioned(base.text_encoder, own)
    train_concept(base.denoiser(), encode, bank, own, config, text_encoder=base.text_encoder)
    adapters, words = compose(bank, [("dog", 1.0)]), bank.words()
    save_composed(bank, [("dog", 1.0)], tmp_path / "dog.safetensors", adapters)
    (word,) = save_words(words, tmp_path / "embeddings")

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None, requires_safety_checker=False)
    pipeline.load_lora_weights(str(tmp_path), weight_name="dog.safetensors")
    pipeline.load_textual_inversion(str(word))
    prompt = "photo of a sksdog, on grass"
    text = pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0]
    assert torch.allclose(text, base.encode_prompt(prompt, words), atol=1e-5)
    assert not torch.allclose(text, base.encode_prompt(prompt), atol=1e-2)
    arguments = {"num_inference_steps": 3, "guidance_scale": 7.5, "height": 64, "width": 64}
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(prompt, generator=[torch.Generator().manual_seed(5)], **arguments).images[0]
    drawn = generate(base, prompt, adapters, SamplingSettings(3, 64, seed=5), words)[0]
    assert max(abs(a - b) for a, b in zip(picture.tobytes(), drawn.tobytes(), strict=True)) <= 1


def test_the_file_tells_managers_what_it_is(trained):
    _, bank = trained
    with safe_open(bank.folder / bank.concept("dog").file, framework="pt") as file:
        header = file.metadata()
    assert header["modelspec.trigger_phrase"] == "sksdog dog"
    assert header["ss_network_dim"] == "3"
    assert header["ss_base_model_version"] == "sd_v1"


def test_generation_leaves_the_base_as_it_was(trained):
    base, bank = trained
    settings = SamplingSettings(2, 64, seed=1)
    first = generate(base, "a dog", settings=settings)[0].tobytes()
    with_concept = generate(base, "a dog", compose(bank, [("dog", 1.0)]), settings)[0].tobytes()
    again = generate(base, "a dog", settings=settings)[0].tobytes()
    assert first == again != with_concept
