"""Single-file checkpoints: what loads as the same model, and what is refused before anything is loaded."""

import pytest
import tiny_base
import torch
from safetensors.torch import load_file, save_file

from seqlora_core.errors import UserError
from seqlora_core.model.base import load_base


def test_a_single_file_with_the_first_names_of_the_text_encoder_is_the_same_model(base_file, tmp_path):
    older = {key.replace(".transformer.text_model.", ".transformer."): w for key, w in load_file(base_file).items()}
    older["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(older, tmp_path / "older.safetensors")
    first = load_base(str(base_file))
    second = load_base(str(tmp_path / "older.safetensors"), tokenizer=str(base_file.parent / "tokenizer"))
    assert first.appearance() == second.appearance()
    assert torch.equal(first.encode_prompt("photo of a sksdog dog"), second.encode_prompt("photo of a sksdog dog"))


@pytest.mark.parametrize(("channels", "per_level"), [((32, 64), 1), ((32, 64, 64), 3)])
def test_single_files_with_fewer_levels_load(tmp_path, channels, per_level):
    attending = len(channels) - 1
    shape = {
        "block_out_channels": channels,
        "layers_per_block": per_level,
        "down_block_types": ["CrossAttnDownBlock2D"] * attending + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * attending,
    }
    pipeline = tiny_base.make_pipeline(tmp_path / "tokenizer", **shape)
    save_file(tiny_base.original_layout(pipeline), tmp_path / "small.safetensors")
    loaded = load_base(str(tmp_path / "small.safetensors"))
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 77, 64)
    with torch.no_grad():
        expected = pipeline.unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
        assert torch.allclose(loaded.denoiser().predict_noise(*inputs), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t | {"conditioner.embedders.0.x": torch.zeros(1)}, "SDXL"),
        (lambda t: t | {"cond_stage_model.model.token_embedding.weight": torch.zeros(1)}, "2.x"),
        (
            lambda t: t | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
            "inpainting",
        ),
        (
            lambda t: {k: v for k, v in t.items() if not k.startswith("first_stage_model.")},
            "without text encoder or VAE",
        ),
        (lambda t: {"lora_unet_x.lora_down.weight": torch.zeros(1)}, "a LoRA"),
        (lambda t: {"something.else": torch.zeros(1)}, "not a checkpoint"),
        (lambda t: {"model.diffusion_model.double_blocks.0.x": torch.zeros(1)}, "Flux"),
        (lambda t: t | {"v_pred": torch.tensor([])}, "v-prediction"),
    ],
)
def test_other_single_files_are_refused_by_name(base_file, tmp_path, change, what):
    save_file(change(load_file(base_file)), tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=what):
        load_base(str(tmp_path / "other.safetensors"))


def test_a_file_that_is_said_to_predict_velocity_is_refused(base_file, tmp_path):
    weights, path = load_file(base_file), tmp_path / "base.safetensors"
    save_file(weights, path, {"modelspec.prediction_type": "v"})
    with pytest.raises(UserError, match="v-prediction"):
        load_base(str(path))
    save_file(weights, path, {"modelspec.prediction_type": "epsilon"})
    settings = "model:\n  params:\n    parameterization: {}  # the loss\n    linear_start: 0.00085\n"
    path.with_suffix(".yaml").write_text(settings.format('"v"'), "utf-8")
    with pytest.raises(UserError, match="v-prediction"):
        load_base(str(path))
    path.with_suffix(".yaml").write_text(settings.format("eps"), "utf-8")
    tokenizer = str(base_file.parent / "tokenizer")
    assert (
        load_base(str(path), tokenizer=tokenizer).identity.fingerprint == load_base(str(base_file)).identity.fingerprint
    )
