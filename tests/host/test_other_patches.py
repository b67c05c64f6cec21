"""Concepts with what else a graph may do to a model: LoRAs, CLIP skip, ControlNet; and a bank that fills up."""

import numpy as np
import pytest
import torch
from banks import occupy
from graphs import composed, loader, picture, text, training, unet_alone
from PIL import Image
from safetensors.torch import load_file, save_file

from seqlora_core.bank import Bank, lora_file
from seqlora_core.composition.concatenation import compose
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import original_names

pytestmark = pytest.mark.slow

STRENGTHS = {"dog": 0.7, "cat": -0.4, "other": 1.5}


@pytest.fixture(scope="module")
def bank(host) -> Bank:
    """A bank of two concepts that clearly change pictures, and a LoRA file of another maker in models/loras."""
    for subject in ("dog", "cat"):
        changes = {"alpha": 0.1, "bank_name": "beside others", "layers": "all", "method": "orthogonal"}
        host.run({**loader(), **training(subject, **changes)})
    bank = Bank.open(host.folder / "models" / "seqlora" / "beside others")
    save_file(lora_file.to_state_dict(other_lora(bank)), host.folder / "models" / "loras" / "other.safetensors")
    return bank


def other_lora(bank: Bank) -> dict[str, Adapter]:
    generator = torch.Generator().manual_seed(0)
    return {
        layer: Adapter.from_factors(
            torch.randn(shape.out, 2, generator=generator) / shape.out**0.5,
            torch.randn(shape.width, 2, generator=generator) / shape.width**0.5,
        )
        for layer, shape in bank.manifest.layers.items()
    }


def stock_lora(model: list) -> dict:
    inputs = {"model": model, "clip": ["base", 1], "lora_name": "other.safetensors", "strength_clip": 1.0}
    return {"class_type": "LoraLoader", "inputs": {**inputs, "strength_model": STRENGTHS["other"]}}


def concepts_on(model: list) -> dict:
    nodes = composed(f"dog:{STRENGTHS['dog']}, cat:{STRENGTHS['cat']}", "beside others")
    nodes["compose"]["inputs"]["model"] = model
    return nodes


@pytest.mark.parametrize("order", ["before", "after"])
def test_weights_are_the_sum_of_the_base_the_concepts_and_a_stock_lora(host, bank, order):
    if order == "before":
        nodes, model = {"lora": stock_lora(["base", 0]), **concepts_on(["lora", 0])}, ["compose", 0]
    else:
        nodes, model = {**concepts_on(["base", 0]), "lora": stock_lora(["compose", 0])}, ["lora", 0]
    save = {"class_type": "ModelSave", "inputs": {"model": model, "filename_prefix": f"saved-{order}"}}
    host.run({**loader(), **nodes, "save": save})
    saved = load_file(next((host.folder / "output").glob(f"saved-{order}*.safetensors")))
    base = load_file(host.folder / "models" / "checkpoints" / "small.safetensors")
    parts = [(compose(bank, [(name, STRENGTHS[name]) for name in ("dog", "cat")]), 1.0)]
    parts.append((other_lora(bank), STRENGTHS["other"]))
    for layer, name in original_names(bank.manifest.layers).items():
        key = f"model.diffusion_model.{name}.weight"
        change = sum(strength * part[layer].A @ part[layer].B.mT for part, strength in parts)
        expected = base[key].float() + change
        error = (saved[key].float() - expected).norm()
        assert error < 1e-3 * expected.norm()  # the host saves float16
        assert error < 0.05 * change.norm()


def with_clip_skip(nodes: dict) -> dict:
    skip = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["base", 1], "stop_at_clip_layer": -2}}
    nodes["words"]["inputs"]["clip"] = ["skip", 0]
    return {**nodes, "skip": skip}


def pictured(host, nodes: dict, name: str) -> np.ndarray:
    nodes["save"]["inputs"]["filename_prefix"] = name
    file = host.run({**loader(), **nodes})["save"]["images"][0]["filename"]
    return np.asarray(Image.open(host.folder / "output" / file)).astype(int)


def test_concepts_act_with_clip_skip_and_are_trained_with_it(host, bank):
    pictures = {
        (skip, concepts): pictured(
            host,
            (with_clip_skip if skip else dict)(
                {**concepts_on(["base", 0]), **picture(["compose", 0] if concepts else ["base", 0], "x")}
            ),
            f"skip-{skip}-{concepts}",
        )
        for skip in (False, True)
        for concepts in (False, True)
    }
    for skip in (False, True):
        assert np.abs(pictures[skip, True] - pictures[skip, False]).max() > 2
    for concepts in (False, True):
        assert np.abs(pictures[True, concepts] - pictures[False, concepts]).max() > 2
    skip = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["base", 1], "stop_at_clip_layer": -2}}
    for name, clip in (("skipped", ["skip", 0]), ("unskipped", ["base", 1])):
        host.run({**loader(), "skip": skip, **training("dog", concept_name=name, bank_name=name, clip=clip)})
    assert not same_factors(host, "skipped", "unskipped")


def same_factors(host, *names: str) -> bool:
    banks = host.folder / "models" / "seqlora"
    first, second = (load_file(banks / name / "concepts" / f"{name}.safetensors") for name in names)
    return all(torch.equal(first[key], second[key]) for key in first)


def test_concepts_act_under_a_controlnet(host, bank):
    def drawn(concepts: bool, controlled: bool) -> np.ndarray:
        nodes = {**concepts_on(["base", 0]), **picture(["compose", 0] if concepts else ["base", 0], "x")}
        nodes["control"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "small.safetensors"}}
        nodes["hint"] = {"class_type": "LoadImage", "inputs": {"image": "dog.jpg"}}
        apply = {
            "positive": ["words", 0],
            "negative": ["words", 0],
            "control_net": ["control", 0],
            "image": ["hint", 0],
        }
        apply |= {"strength": 0.5, "start_percent": 0.0, "end_percent": 1.0}
        nodes["apply"] = {"class_type": "ControlNetApplyAdvanced", "inputs": apply}
        if controlled:
            nodes["sample"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
        return pictured(host, nodes, f"control-{concepts}-{controlled}")

    neither, concepts, control, both = (drawn(*which) for which in ((0, 0), (1, 0), (0, 1), (1, 1)))
    assert np.abs(both - control).max() > 2
    assert np.abs(both - concepts).max() > 2
    assert np.abs(control - neither).max() > 2


ATTENTION_PATCHES = {
    "replaced": {"class_type": "PerturbedAttentionGuidance", "inputs": {"scale": 3.0}},
    "patched": {
        "class_type": "HyperTile",
        "inputs": {"tile_size": 64, "swap_size": 2, "max_depth": 0, "scale_depth": False},
    },
}


@pytest.mark.parametrize("kind", ATTENTION_PATCHES)
def test_concepts_act_under_attention_patches_of_other_nodes(host, bank, kind):
    """Those are the two ways in which IP-Adapter's nodes reach into the UNet."""
    drawn = []
    for model in (["compose", 0], ["base", 0]):
        patch = {**ATTENTION_PATCHES[kind], "inputs": {"model": model, **ATTENTION_PATCHES[kind]["inputs"]}}
        nodes = {**concepts_on(["base", 0]), "patch": patch, **picture(["patch", 0], "x")}
        drawn.append(pictured(host, nodes, f"{kind}-{model[0]}"))
    assert np.abs(drawn[0] - drawn[1]).max() > 2


def test_weights_of_eight_bits_are_trained_on_in_place(host):
    unet = unet_alone(host, "fp8_e4m3fn")
    trained = training("dog", lr_coefficients=0.1, bank_name="eight bits", model=["unet", 0])
    assert "learned" in text(host.run({**loader(), "unet": unet, **trained}), "train-dog")
    nodes = composed("dog", "eight bits")
    nodes["compose"]["inputs"]["model"] = ["unet", 0]
    drawn = [
        pictured(host, {"unet": unet, **nodes, **picture(model, "x")}, f"eight-{model[0]}")
        for model in (["compose", 0], ["unet", 0])
    ]
    assert np.abs(drawn[0] - drawn[1]).max() > 2


def test_a_lora_in_place_takes_part_in_the_training(host, bank):
    for name, model in (("with", ["lora", 0]), ("without", ["base", 0])):
        nodes = {"lora": stock_lora(["base", 0])}
        host.run({**loader(), **nodes, **training("dog", concept_name=name, bank_name=name, model=model)})
    assert not same_factors(host, "with", "without")


def test_full_layers_are_said_clearly_where_a_concept_is_trained_and_used(host, bank):
    changes = {"bank_name": "filling", "layers": "all", "method": "orthogonal"}  # which watches no prompts before
    host.run({**loader(), **training("dog", **changes)})
    filling = Bank.open(host.folder / "models" / "seqlora" / "filling")
    occupy(filling, "big", free=3, widths=(320,))
    narrow = [layer for layer, shape in filling.manifest.layers.items() if shape.width == 320]
    sentence = f"{len(narrow)} layers had no room for rank 4 next to the bank's other concepts and are left out"
    outputs = host.run({**loader(), **training("cat", rank=4, **changes)})
    assert sentence in text(outputs, "train-cat")
    assert set(filling.refresh().concept("cat").layers_skipped) == set(narrow)
    nodes = composed("cat", "filling")
    show = {"class_type": "PreviewAny", "inputs": {"source": ["compose", 2]}}
    assert f"cat: {sentence}" in text(host.run({**loader(), **nodes, "show": show}), "show")
