"""Metrics of other packages: nothing is downloaded, what is missing is named, and their calls give what they promise.

Their weights take gigabytes, so the packages are stand-ins with the calls of the published releases, except that HPSv2
runs with random weights where open_clip is installed.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from seqlora_core.errors import UserError
from seqlora_core.evaluation import extra_metrics
from seqlora_core.evaluation.metrics import load_metrics, score

CPU = torch.device("cpu")
RED, BLUE = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))


def mean_colours(images) -> torch.Tensor:
    return torch.stack([torch.tensor(image.getpixel((0, 0)), dtype=torch.float32) for image in images])


def touch(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize("name", ["dreamsim", "hpsv2", "hpsv3"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "open_clip" if name == "hpsv2" else name, None)
    with pytest.raises(UserError, match=rf"The metric {name} needs the package .*: python -m pip install -e"):
        load_metrics([f"{name}={tmp_path}"], "", CPU)


@pytest.mark.parametrize("name", ["dreamsim", "hpsv2", "hpsv3"])
def test_a_folder_without_the_weights_is_refused_before_the_package_looks(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "open_clip" if name == "hpsv2" else name, SimpleNamespace(__file__=__file__))
    with pytest.raises(UserError, match=f"weights of {name}"):
        load_metrics([f"{name}={tmp_path}"], "", CPU)


def test_a_package_that_its_environment_breaks_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "hpsv3.py").write_text("raise ImportError('cannot import name X from transformers')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"hpsv3 of the metric hpsv3 cannot be imported \(cannot import name X"):
        load_metrics([f"hpsv3={tmp_path}"], "", CPU)


def test_dreamsim_is_one_minus_its_distance(tmp_path, monkeypatch):
    class Model(torch.nn.Module):
        def embed(self, pixels):
            return pixels - pixels.mean(1, keepdim=True)

        def forward(self, first, second):
            return 1 - torch.cosine_similarity(self.embed(first), self.embed(second))

    asked = {}

    def dreamsim(pretrained, device, cache_dir, normalize_embeds, dreamsim_type):
        asked.update(pretrained=pretrained, folder=cache_dir, kind=dreamsim_type)
        return Model(), lambda image: mean_colours([image])

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=dreamsim))
    folder = touch(tmp_path, *extra_metrics._DREAMSIM["ensemble"])
    [metric] = load_metrics([f"dreamsim={folder}"], "", CPU)
    assert asked == {"pretrained": True, "folder": str(folder), "kind": "ensemble"}
    distance = Model()(mean_colours([RED]), mean_colours([BLUE])).item()
    assert score(metric, [RED], [BLUE], "") == pytest.approx(1 - distance)


def test_hpsv3_is_the_mean_of_its_reward_and_reads_the_base_from_its_folder(tmp_path, monkeypatch):
    package = tmp_path / "hpsv3"
    touch(package, "__init__.py", "config/HPSv3_7B.yaml")
    settings = 'rm_head_type: "ranknet"\nmodel_name_or_path: "Qwen/Qwen2-VL-7B-Instruct"\noutput_dim: 2\n'
    (package / "config" / "HPSv3_7B.yaml").write_text(settings, "utf-8")
    asked = {}

    class Inferencer:
        def __init__(self, config_path, checkpoint_path, device):
            asked.update(settings=Path(config_path).read_text("utf-8"), checkpoint=checkpoint_path)

        def reward(self, image_paths, prompts):
            return torch.stack([torch.tensor([len(prompts[0]) + i.getpixel((0, 0))[2], 9.0]) for i in image_paths])

    module = SimpleNamespace(__file__=str(package / "__init__.py"), HPSv3RewardInferencer=Inferencer)
    monkeypatch.setitem(sys.modules, "hpsv3", module)
    folder = touch(tmp_path / "weights", "HPSv3.safetensors", "Qwen2-VL-7B-Instruct/config.json")
    [metric] = load_metrics([f"hpsv3={folder}"], "", CPU)
    assert asked["checkpoint"] == str(folder / "HPSv3.safetensors")
    assert f"model_name_or_path: {json.dumps(str(folder / 'Qwen2-VL-7B-Instruct'))}" in asked["settings"]
    assert "Qwen/" not in asked["settings"] and 'rm_head_type: "ranknet"' in asked["settings"]
    assert score(metric, [RED, BLUE], [], "a cat") == pytest.approx(5 + 255 / 2)


def test_hpsv2_is_the_cosine_of_image_and_prompt_with_the_folder_s_weights(tmp_path, monkeypatch):
    package = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    tiny = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-hps.json").write_text(json.dumps(tiny), "utf-8")
    package.add_model_config(tmp_path / "tiny-hps.json")
    monkeypatch.setattr(extra_metrics, "_HPSV2_MODEL", "tiny-hps")
    torch.manual_seed(1)
    model, _, prepare = package.create_model_and_transforms("tiny-hps")
    (tmp_path / "weights").mkdir()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights" / "HPS_v2.1_compressed.pt")
    [metric] = load_metrics([f"hpsv2={tmp_path / 'weights'}"], "", CPU)
    with torch.no_grad():
        both = model.eval()(prepare(BLUE)[None], package.get_tokenizer("tiny-hps")(["a cat"]))
    expected = torch.cosine_similarity(both[0], both[1]).item()
    assert score(metric, [BLUE], [], "a cat") == pytest.approx(expected, abs=1e-5)
    (tmp_path / "weights" / "HPS_v2.1_compressed.pt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_metrics([f"hpsv2={tmp_path / 'weights'}"], "", CPU)
