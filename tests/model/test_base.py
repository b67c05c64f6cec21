"""Base models: both forms, their identity, and what is refused by name."""

import json
import re
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from seqlora_core.data.encoding import encode_concept
from seqlora_core.data.images import to_rgb
from seqlora_core.data.prompts import template_prompts
from seqlora_core.data.reference_folder import Reference
from seqlora_core.errors import UserError
from seqlora_core.hashing import fingerprint
from seqlora_core.model.base import load_base
from seqlora_core.model.sd15 import find_layers, sd15_alphas_cumprod


def test_the_single_file_and_the_folder_are_the_same_model(base_folder, base_file):
    folder, file = load_base(str(base_folder)), load_base(str(base_file))
    assert folder.identity.fingerprint == file.identity.fingerprint
    assert folder.layers == file.layers
    text = folder.encode_prompt("photo of a sksdog dog")
    assert torch.equal(text, file.encode_prompt("photo of a sksdog dog"))
    noisy, timesteps = torch.randn(1, 4, 16, 16), torch.tensor([77])
    first = folder.denoiser().predict_noise(noisy, timesteps, text[None])
    second = file.denoiser().predict_noise(noisy, timesteps, text[None])
    assert torch.allclose(first, second, atol=1e-5)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    for a, b in zip(folder.encode_image(pixels), file.encode_image(pixels), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_folder_with_the_weights_of_one_variant_alone_is_the_same_model(base_folder, tmp_path):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    for file in list(copy.glob("*/*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert load_base(str(copy)).rendering_fingerprint() == load_base(str(base_folder)).rendering_fingerprint()


def test_a_fingerprint_in_bfloat16_is_that_of_all_precisions_and_takes_scalars():
    weights = {"a": torch.randn(100, 7, generator=torch.Generator().manual_seed(0)).half().float(), "b": torch.ones(())}
    prints = {
        fingerprint({name: weight.to(dtype) for name, weight in weights.items()}, torch.bfloat16)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    assert len(prints) == 1
    assert prints != {fingerprint({**weights, "b": torch.zeros(())}, torch.bfloat16)}


def test_a_float16_file_of_the_same_weights_has_the_same_fingerprint(base_file, tmp_path):
    half = {key: value.half() for key, value in load_file(base_file).items()}
    save_file(half, tmp_path / "half.safetensors")
    identity = load_base(str(tmp_path / "half.safetensors"), tokenizer=str(base_file.parent / "tokenizer")).identity
    assert identity.fingerprint == load_base(str(base_file)).identity.fingerprint


def test_lower_precision_weights_train_with_the_fingerprint_of_the_published_ones(base_folder):
    base = load_base(str(base_folder), dtype="bfloat16")
    assert next(base.pipeline.unet.parameters()).dtype == torch.bfloat16
    assert base.identity.fingerprint == load_base(str(base_folder)).identity.fingerprint


def test_the_unet_goes_to_its_device_in_the_precision_that_stays(base_folder, monkeypatch):
    """A card that holds it in half precision may not hold it in float32."""
    seen = set()

    def to(module, *args, **kwargs):
        moved = nn.Module.to(module, *args, **kwargs)
        weight = next(module.parameters())
        seen.add((weight.device.type, weight.dtype))
        return moved

    monkeypatch.setattr("seqlora_core.model.base.resolve_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(UNet2DConditionModel, "to", to)
    base = load_base(str(base_folder), dtype="bfloat16")
    assert {dtype for device, dtype in seen if device == "meta"} == {torch.bfloat16}
    monkeypatch.undo()
    assert base.identity.fingerprint == load_base(str(base_folder)).identity.fingerprint


def test_the_schedule_is_the_pipelines(base_folder):
    scheduler = load_base(str(base_folder)).pipeline.scheduler
    assert torch.allclose(scheduler.alphas_cumprod, sd15_alphas_cumprod(), atol=1e-6)


def test_all_128_layers_of_sd15_are_found(base_folder):
    assert len(find_layers(load_base(str(base_folder)).pipeline.unet)) == 128


@pytest.mark.parametrize(
    ("part", "change", "what"),
    [
        ("unet/config.json", {"in_channels": 9}, "inpainting|cannot be loaded"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "v_prediction"),
    ],
)
def test_other_folders_are_refused_by_name(base_folder, tmp_path, part, change, what):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    config = json.loads((copy / part).read_text("utf-8"))
    (copy / part).write_text(json.dumps({**config, **change}), "utf-8")
    with pytest.raises(UserError, match=what):
        load_base(str(copy))


def test_missing_and_broken_bases_are_refused(tmp_path):
    with pytest.raises(UserError, match="no base model"):
        load_base(str(tmp_path / "none"))
    with pytest.raises(UserError, match="model_index"):
        load_base(str(tmp_path))
    for name in ("x.ckpt", "x.safetensors"):
        (tmp_path / name).write_bytes(b"rubbish")
        with pytest.raises(UserError, match="safetensors"):
            load_base(str(tmp_path / name))


@pytest.mark.parametrize(("device", "dtype"), [("cuda:7", "float32"), ("tpu9", "float32"), ("cpu", "float16")])
def test_devices_and_precisions_that_are_not_there_are_refused(base_folder, device, dtype):
    with pytest.raises(UserError):
        load_base(str(base_folder), device, dtype)


def test_encoding_gives_a_mean_and_a_spread_and_one_embedding_a_prompt(base_folder, photos):
    base = load_base(str(base_folder))
    from PIL import Image

    picture = to_rgb(Image.open(photos / "dog" / "00.jpg"))
    wide = picture.resize((200, 100))
    references = [Reference(picture, template_prompts("sks dog"), "a"), Reference(wide, ("my caption",), "b")]
    data = encode_concept(base, references, 64)
    assert [example.mean.shape for example in data.examples] == [(4, 8, 8)] * 2
    assert all((example.std > 0).all() for example in data.examples)
    assert data.examples[0].prompts.shape == (6, 77, 64)
    assert torch.equal(data.examples[1].prompts[0], base.encode_prompt("my caption"))
    data = encode_concept(base, references, 64, crop="random", flip=True)
    assert [example.mean.shape[1:] for example in data.examples] == [(8, 8), (8, 8), (8, 16), (8, 16)]
    assert data.window == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_with_weights_that_are_not_finite_is_refused_by_name(base_folder, tmp_path, part, value):
    folder = shutil.copytree(base_folder, tmp_path / "broken")
    file = next((folder / part).glob("*.safetensors"))
    weights = load_file(file)
    key = max(weights)
    weights[key].view(-1)[-1] = value
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=rf"broken holds numbers that are not finite in {part}\.{re.escape(key)}"):
        load_base(str(folder))


def test_a_base_that_overflows_in_float16_is_refused_with_the_way_out(base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("seqlora_core.model.base.check_dtype", lambda device, dtype: None)  # as on a graphics card
    folder = shutil.copytree(base_folder, tmp_path / "large")
    file = next((folder / "unet").glob("*.safetensors"))
    weights = load_file(file)
    weights["conv_in.weight"].view(-1)[0] = 1e6
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"In float16, .*conv_in\.weight: use --dtype float32"):
        load_base(str(folder), "cpu", "float16")
    load_base(str(folder), "cpu", "bfloat16")


def test_a_fingerprint_of_weights_that_are_not_finite_is_refused_by_name():
    with pytest.raises(UserError, match=r"weights of a\.b are not finite"):
        fingerprint({"a.b": torch.tensor([[float("nan")]])})
