"""Files of other tools: every naming, what is measured, and what is refused by name."""

import json

import pytest
import torch
from lora_files import kohya, random_adapters, update, write

from seqlora_core.bank import foreign_lora
from seqlora_core.model.sd15 import original_names

NAMINGS = {
    "kohya": (kohya, "lora_up.weight", "lora_down.weight"),
    "LyCORIS": (lambda layer: f"lycoris_{layer.replace('.', '_')}.", "lora_up.weight", "lora_down.weight"),
    "diffusers": (lambda layer: f"unet.{layer}.", "lora_B.weight", "lora_A.weight"),
    "diffusers 0.20": (lambda layer: f"unet.{layer}.", "lora.up.weight", "lora.down.weight"),
    "diffusers 0.18": (
        lambda layer: "unet." + layer.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_") + "_lora.",
        "up.weight",
        "down.weight",
    ),
    "PEFT": (lambda layer: f"base_model.model.{layer}.", "lora_B.weight", "lora_A.weight"),
    "PEFT of a training": (lambda layer: f"{layer}.", "lora_B.default.weight", "lora_A.default.weight"),
}


@pytest.mark.parametrize("naming", list(NAMINGS))
def test_every_naming_is_read_alike(bank, tmp_path, naming):
    adapters = random_adapters(bank)
    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, *NAMINGS[naming]), bank.manifest.layers)
    assert lora.adapters.keys() == adapters.keys()
    assert all(torch.allclose(update(lora.adapters[layer]), update(adapters[layer])) for layer in adapters)
    assert not any(lora.left_out.values())
    assert lora.share == 1.0


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_names_of_the_original_layout_are_read(bank, tmp_path, prefix):
    adapters, originals = random_adapters(bank), original_names(bank.manifest.layers)

    def name_of(layer: str) -> str:
        name = prefix + originals[layer]
        return f"{name.replace('.', '_')}." if prefix.endswith("_") else f"{name}."

    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, name_of), bank.manifest.layers)
    assert all(torch.allclose(update(lora.adapters[layer]), update(adapters[layer])) for layer in adapters)


def test_original_names_of_stable_diffusion_are_those_of_its_checkpoints():
    rest = "transformer_blocks.0.attn1.to_q"
    layers = [f"{way}_blocks.{level}.attentions.{position}.{rest}" for way, level, position in (
        ("down", 0, 0), ("down", 0, 1), ("down", 2, 1), ("up", 1, 0), ("up", 3, 2)
    )]  # fmt: skip
    names = original_names([*layers, f"mid_block.attentions.0.{rest}"])
    blocks = [name.removesuffix(f".{rest}") for name in names.values()]
    assert blocks == [
        *("input_blocks.1.1", "input_blocks.2.1", "input_blocks.8.1"),
        *("output_blocks.3.1", "output_blocks.11.1", "middle_block.1"),
    ]


def test_alpha_scales_wherever_a_tool_keeps_it(bank, tmp_path):
    adapters = random_adapters(bank, ranks=(4,))
    alphas = {f"{kohya(layer)}alpha": torch.tensor(1.0) for layer in adapters}
    settings = json.dumps({"unet.r": 4, "unet.lora_alpha": 1, "text_encoder.lora_alpha": 8})
    diffusers, peft = NAMINGS["diffusers"], NAMINGS["PEFT"]
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 1}')
    files = [
        write(tmp_path / "a.safetensors", adapters, kohya, **alphas),
        write(tmp_path / "b.safetensors", adapters, *diffusers, metadata={"lora_adapter_metadata": settings}),
        write(tmp_path / "peft" / "adapter_model.safetensors", adapters, *peft),
    ]
    for file in files:
        lora = foreign_lora.read(file, bank.manifest.layers)
        assert lora.alpha_known
        assert all(torch.allclose(update(lora.adapters[layer]) * 4, update(adapters[layer])) for layer in adapters)
    unknown = foreign_lora.read(write(tmp_path / "c.safetensors", adapters, *diffusers), bank.manifest.layers)
    assert not unknown.alpha_known


def test_an_attention_layer_of_whose_change_only_the_bias_is_left_is_no_error(bank, tmp_path):
    """The extraction leaves the factors of weights out that are the same in both models."""
    adapters, layer = random_adapters(bank), "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    del adapters[layer]
    bias = {f"{kohya(layer)}diff_b": torch.ones(bank.manifest.layers[layer].out)}
    lora = foreign_lora.read(write(tmp_path / "x.safetensors", adapters, kohya, **bias), bank.manifest.layers)
    assert lora.adapters.keys() == adapters.keys()
    assert lora.left_out["other"] == 1
