"""What other nodes can put on the inputs of SeqLoRA Train Concept."""

from pathlib import Path

import pytest
from comfy_server import NodeError
from graphs import loader, part_of_checkpoint, text, training
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lora(host) -> dict:
    """A stock LoRA on model and CLIP, made of a concept."""
    host.run({**loader(), **training("dog", bank_name="inputs")})
    bank = {"bank": {"class_type": "SeqLoRABankLoader", "inputs": {"bank_name": "inputs"}}}
    export = {"bank": ["bank", 0], "concept_name": "dog", "file_name": "on-inputs"}
    host.run({**bank, "export": {"class_type": "SeqLoRAExportConcept", "inputs": export}})
    return {"lora_name": "on-inputs.safetensors", "strength_model": 1.0, "model": ["base", 0]}


def test_another_lora_on_the_model_is_another_training(host, lora):
    nodes = {"lora": {"class_type": "LoraLoaderModelOnly", "inputs": lora}}
    changes = {"bank_name": "inputs", "concept_name": "cat", "on_existing": "replace", "steps": 1}
    plain = {**loader(), **training("cat", **changes)}
    on_top = {**loader(), **nodes, **training("cat", **changes, model=["lora", 0])}
    stronger = {**on_top, "lora": {**nodes["lora"], "inputs": {**lora, "strength_model": 0.5}}}
    for prompt in (plain, on_top, stronger):
        assert "cat learned" in text(host.run(prompt), "train-cat")
    assert "nothing was trained" in text(host.run(stronger), "train-cat")


def test_another_layer_of_clip_is_another_training(host, lora):
    skip = {"skip": {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["base", 1], "stop_at_clip_layer": -2}}}
    changes = {"bank_name": "inputs", "concept_name": "skipped", "steps": 1}
    host.run({**loader(), **training("cat", **changes)})
    with pytest.raises(NodeError, match="other settings, images or LoRAs"):
        host.run({**loader(), **skip, **training("cat", **changes, clip=["skip", 0])})


@pytest.mark.parametrize(
    ("input_name", "changed", "trained"),
    [
        ("vae", "taesd_encoder.0.weight", True),
        ("vae", "taesd_decoder.1.weight", False),  # pictures that are trained on are never decoded
        ("clip", "text_model.encoder.layers.3.mlp.fc1.weight", True),
        ("clip", None, False),
    ],
)
def test_another_vae_or_clip_is_another_training(host, lora, input_name, changed, trained):
    prefix, folder, output, node, inputs = {
        "vae": ("first_stage_model.", "vae", 2, "VAELoader", {}),
        "clip": ("cond_stage_model.transformer.", "text_encoders", 1, "CLIPLoader", {"type": "stable_diffusion"}),
    }[input_name]
    weights, file = part_of_checkpoint(host, prefix), f"{input_name} {changed}.safetensors"
    if changed:
        weights[changed] = weights[changed] * 1.01
    (host.folder / "models" / folder).mkdir(exist_ok=True)
    save_file(weights, host.folder / "models" / folder / file)
    nodes = {"other": {"class_type": node, "inputs": {f"{input_name}_name": file, **inputs}}}
    changes = {"bank_name": "inputs", "concept_name": "encoded", "steps": 1, "on_existing": "replace"}
    host.run({**loader(), **training("cat", **changes, **{input_name: ["base", output]})})
    again = host.run({**loader(), **nodes, **training("cat", **changes, **{input_name: ["other", 0]})})
    assert ("encoded learned" if trained else "nothing was trained") in text(again, "train-cat")


def test_pictures_with_an_alpha_channel_are_trained_on(host, lora):
    nodes = {
        "mask": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 512, "height": 512}},
        "cut": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["photo-cat", 0], "alpha": ["mask", 0]}},
    }
    changes = {"bank_name": "inputs", "concept_name": "cut out", "images": ["cut", 0], "steps": 1}
    assert "cut out learned" in text(host.run({**loader(), **nodes, **training("cat", **changes)}), "train-cat")


@pytest.mark.parametrize(
    ("sampling", "message"), [("v_prediction", "does not predict noise"), ("lcm", "other timesteps")]
)
def test_a_model_that_was_switched_to_another_sampling_is_refused(host, sampling, message):
    switch = {"model": ["base", 0], "sampling": sampling, "zsnr": False}
    nodes = {"switch": {"class_type": "ModelSamplingDiscrete", "inputs": switch}}
    with pytest.raises(NodeError, match=message):
        host.run({**loader(), **nodes, **training("dog", concept_name="n", model=["switch", 0])})


def test_the_bank_s_name_may_come_from_another_node(host, lora):
    name = {"name": {"class_type": "PrimitiveString", "inputs": {"value": "inputs"}}}
    prompt = {**loader(), **name, **training("dog", bank_name=["name", 0])}
    assert "nothing was trained" in text(host.run(prompt), "train-dog")
    logs = sorted(host.folder.glob("server-*.log"), key=lambda path: path.stat().st_mtime)
    assert "object has no attribute" not in Path(logs[-1]).read_text("utf-8", errors="replace")


def test_a_text_for_every_picture_of_a_list_is_a_caption_of_its_own(host, lora):
    nodes = {
        "folder": {"class_type": "SeqLoRALoadImageFolder", "inputs": {"folder": "cat photos"}},
        "captioner": {"class_type": "TestsCaptioner", "inputs": {"image": ["folder", 0]}},
    }
    changes = {"bank_name": "inputs", "concept_name": "captioned", "captions": ["captioner", 0], "steps": 1}
    with pytest.raises(NodeError, match=r"\d captions for 1 image"):
        host.run({**loader(), **nodes, **training("cat", **changes)})
    prompt = {**loader(), **nodes, **training("cat", **changes, images=["folder", 0])}
    assert "captioned learned" in text(host.run(prompt), "train-cat")


def test_pictures_of_a_folder_are_no_larger_than_a_training_can_use(host, lora):
    folder = host.folder / "input" / "of a camera"
    folder.mkdir()
    for name, size in (("large", (3000, 2000)), ("long", (2000, 900))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
    nodes = {
        "folder": {"class_type": "SeqLoRALoadImageFolder", "inputs": {"folder": folder.name}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["folder", 0], "filename_prefix": "of-folder"}},
    }
    saved = host.run(nodes)["save"]["images"]
    sizes = [Image.open(host.folder / "output" / picture["filename"]).size for picture in saved]
    assert sizes == [(1536, 1024), (2000, 900)]


def test_a_merged_model_is_the_same_when_it_was_merged_again(host, lora):
    half = {"model1": ["base", 0], "model2": ["lora", 0], "ratio": 0.5}
    nodes = {
        "lora": {"class_type": "LoraLoaderModelOnly", "inputs": lora},
        "merge": {"class_type": "ModelMergeSimple", "inputs": half},
    }
    changes = {"bank_name": "merged", "model": ["merge", 0], "steps": 1}
    prompt = {**loader(), **nodes, **training("dog", **changes)}
    assert "dog learned" in text(host.run(prompt), "train-dog")
    host.run({**loader(), **training("cat", bank_name="merged", steps=1)})  # the host forgets the merge
    assert "nothing was trained" in text(host.run(prompt), "train-dog")


def test_names_of_banks_and_folders_may_come_through_outputs_of_any_type(host, lora):
    def named(kind: str, name: str, value: str) -> dict:
        switch = {"class_type": "TestsSwitch", "inputs": {"text": value}}
        return {"switch": switch, "node": {"class_type": kind, "inputs": {name: ["switch", 0]}}}

    show = {"show": {"class_type": "PreviewAny", "inputs": {"source": ["node", 1]}}}
    assert "sksdog dog" in text(host.run({**named("SeqLoRABankLoader", "bank_name", "inputs"), **show}), "show")
    host.run({**named("SeqLoRALoadImageFolder", "folder", "cat photos"), **show})
