"""A mistake fails the whole run with one sentence, whatever else is in the graph."""

import pytest
from comfy_server import NodeError
from graphs import loader, training
from PIL import Image

pytestmark = pytest.mark.slow

OTHER_BRANCH = {
    "words": {"class_type": "PrimitiveString", "inputs": {"value": "fine"}},
    "show": {"class_type": "PreviewAny", "inputs": {"source": ["words", 0]}},
}


def folder_node(name: str) -> dict:
    return {"folder": {"class_type": "SeqLoRALoadImageFolder", "inputs": {"folder": name}}}


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("gone", "has no folder 'gone'"),
        ("../output", "has no folder"),
        ("empty", "There are no images in .*empty"),
        (None, "no image on the input images"),
    ],
)
def test_a_training_without_images_fails_the_run(host, folder, message):
    (host.folder / "input" / "empty").mkdir(exist_ok=True)
    nodes = {**OTHER_BRANCH, **loader(), **training("dog", bank_name="none", images=["folder", 0])}
    if folder is None:
        del nodes["train-dog"]["inputs"]["images"]
    else:
        nodes |= folder_node(folder)
    before = len(host.log())
    with pytest.raises(NodeError, match=message):
        host.run(nodes)
    assert "Traceback" not in host.log()[before:]


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no bank"), ("../x", "not a path"), ("torn", "bank.json")])
def test_a_bank_that_cannot_be_opened_fails_the_run(host, name, message):
    torn = host.folder / "models" / "seqlora" / "torn"
    torn.mkdir(parents=True, exist_ok=True)
    (torn / "bank.json").write_text("{", "utf-8")
    bank = {"bank": {"class_type": "SeqLoRABankLoader", "inputs": {"bank_name": name}}}
    report = {"report": {"class_type": "SeqLoRAInspectBank", "inputs": {"bank": ["bank", 0]}}}
    before = len(host.log())
    with pytest.raises(NodeError, match=message):
        host.run({**OTHER_BRANCH, **bank, **report})
    assert "Traceback" not in host.log()[before:]


def test_folders_of_images_are_listed_at_any_depth_and_others_are_not(host):
    root = host.folder / "input"
    (root / "3d").mkdir(exist_ok=True)
    (root / "nested" / "deep").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(root / "nested" / "deep" / "a.png")
    (root / "nested" / "deep" / "back").symlink_to(root, target_is_directory=True)
    info = host.request("/object_info/SeqLoRALoadImageFolder")["SeqLoRALoadImageFolder"]
    kind, options = info["input"]["required"]["folder"]
    listed = options["options"] if kind == "COMBO" else kind
    assert "nested/deep" in listed
    assert not {"3d", "nested", "nested/deep/back"} & set(listed)
    save = {"class_type": "SaveImage", "inputs": {"images": ["folder", 0], "filename_prefix": "deep"}}
    assert host.run({**folder_node("nested/deep"), "save": save})["save"]["images"]


def test_an_import_without_any_lora_file_says_so(host):
    folder, away = host.folder / "models" / "loras", host.folder / "models" / "loras away"
    folder.rename(away)
    folder.mkdir()
    inputs = {"lora_name": "", "bank_name": "none", "concept_name": "n", "token": "sksn", "class_word": "dog"}
    inputs |= {"project": False, "on_existing": "error", "model": ["base", 0]}
    try:
        with pytest.raises(NodeError, match=r"models/loras has no \.safetensors file"):
            host.run({**OTHER_BRANCH, **loader(), "import": {"class_type": "SeqLoRAImportLora", "inputs": inputs}})
    finally:
        folder.rmdir()
        away.rename(folder)
    assert not (host.folder / "models" / "seqlora" / "none").exists()


def test_a_step_size_that_is_a_lora_s_alpha_is_refused_with_that_sentence(host):
    with pytest.raises(NodeError, match="lr_coefficients is a learning rate, not the alpha of a LoRA"):
        host.run({**loader(), **training("dog", bank_name="none", alpha=16.0)})
