"""Single-file checkpoints: what loads as the same model, and what is refused before anything is loaded."""

import shutil

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
    assert first.rendering_fingerprint() == second.rendering_fingerprint()
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


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("model.diffusion_model.middle_block.", "middle_block.1"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "down_blocks.0.resnets.0.conv1.weight"),
        ("model.diffusion_model.output_blocks.5.", "up_blocks.1"),
        ("model.diffusion_model.out.2.weight", "out.2.weight"),
        ("first_stage_model.decoder.conv_in.weight", "VAE's decoder.conv_in.weight"),
        ("first_stage_model.encoder.down.0.", "first_stage_model.encoder.down.0"),
        ("cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight", "text encoder's .*fc2.weight"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.", "final_layer_norm"),
    ],
)
def test_a_file_that_lacks_weights_is_refused_before_it_is_loaded(base_file, tmp_path, monkeypatch, part, named):
    path = tmp_path / "base.safetensors"
    save_file({key: weight for key, weight in load_file(base_file).items() if not key.startswith(part)}, path)
    monkeypatch.setattr("diffusers.StableDiffusionPipeline.from_single_file", None)
    with pytest.raises(UserError, match=named) as raised:
        load_base(str(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("model.diffusion_model.time_embed.0.weight", (3, 4)),
        ("model.diffusion_model.input_blocks.0.0.weight", (3,)),
        ("model.diffusion_model.middle_block.1.transformer_blocks.999999999999.x", (1,)),
        ("model.diffusion_model.input_blocks.999999999999.0.op.weight", (1,)),
        ("first_stage_model.encoder.down.88.x", (1,)),
        ("first_stage_model.post_quant_conv.weight", ()),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", (7,)),
    ],
)
def test_a_file_of_impossible_shapes_is_refused_in_one_sentence(base_file, tmp_path, key, shape):
    path = tmp_path / "base.safetensors"
    save_file(load_file(base_file) | {key: torch.zeros(shape)}, path)
    with pytest.raises(UserError, match=r"base\.safetensors") as raised:
        load_base(str(path))
    assert "\n" not in str(raised.value)


def test_a_damaged_copy_of_a_checkpoint_is_named(base_file, tmp_path):
    path = tmp_path / "base.safetensors"
    path.write_bytes(base_file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"base\.safetensors.*1000 bytes are missing"):
        load_base(str(path))
    path.write_text("<html>Please sign in</html>", "utf-8")
    with pytest.raises(UserError, match=r"base\.safetensors.*a web page"):
        load_base(str(path))


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("tokenizer", "the tokenizer"),
        ("text_encoder", "text_encoder/config.json"),
        ("vae/diffusion_pytorch_model.safetensors", "the weights of the vae"),
        ("scheduler", "scheduler/scheduler_config.json"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(base_folder, tmp_path, part, named):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    target = copy / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(UserError, match=named) as raised:
        load_base(str(copy))
    assert str(copy) in str(raised.value)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "mid_block"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in"),
        ("text_encoder/model.safetensors", "fc2"),
    ],
)
def test_a_folder_that_lacks_weights_is_refused(base_folder, tmp_path, file, part):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    weights = load_file(copy / file)
    save_file({key: weight for key, weight in weights.items() if part not in key}, copy / file)
    with pytest.raises(UserError, match=part):
        load_base(str(copy))


def test_a_folder_with_the_first_names_of_the_vae_s_attention_loads(base_folder, tmp_path):
    """As the published SD1.5 has them."""
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = load_file(file)
    for new, old in names.items():
        weights = {key.replace(new, old): weight for key, weight in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, file)
    assert load_base(str(copy)).rendering_fingerprint() == load_base(str(base_folder)).rendering_fingerprint()
