"""The nodes in a real ComfyUI: train, compose, cancel, resume, restart, and wrong inputs."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from comfy_server import NodeError, start
from graphs import composed, draw, loader, manifest, picture, text, training
from PIL import Image
from safetensors.torch import load_file

from seqlora_core.bank import Bank
from seqlora_core.bank.inspection import inspect
from seqlora_core.hashing import fingerprint
from seqlora_core.model.sd15 import canonical_names
from seqlora_core.training.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(host):
    """Three concepts learned in one graph; the plain model's picture before that."""
    before = draw(host, ["base", 0], "before")
    host.run({**loader(), **saving("weights-before")})
    host.run({**loader(), **training("dog"), **training("cat"), **training("backpack")})
    return before


def saving(name: str) -> dict:
    return {"save": {"class_type": "ModelSave", "inputs": {"model": ["base", 0], "filename_prefix": name}}}


def test_training_leaves_the_model_as_it_was(host, trained):
    host.run({**loader(), **saving("weights-after")})
    before, after = (
        load_file(next((host.folder / "output").glob(f"weights-{when}*.safetensors"))) for when in ("before", "after")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(weight.view(torch.uint8), after[key].view(torch.uint8)) for key, weight in before.items())
    assert (draw(host, ["base", 0], "after") == trained).all()


def test_the_bank_is_orthogonal_and_composes_into_one_patch(host, trained):
    result = inspect(Bank.open(host.folder / "models" / "seqlora" / "pets"))
    assert result.ok
    assert len(result.pairs) == 3
    outputs = host.run({**loader(), **composed(""), **picture(["compose", 0], "all")})
    words = text(outputs, "compose").splitlines()[0].split(", ")
    assert sorted(words) == ["sksbackpack backpack", "skscat cat", "sksdog dog"]  # the host chooses the order
    assert "rank 2" in text(outputs, "bank")
    changed = np.asarray(Image.open(host.folder / "output" / outputs["save"]["images"][0]["filename"])).astype(int)
    assert np.abs(changed - trained).max() > 2


def test_the_fingerprint_is_that_of_the_checkpoint_file(host, trained):
    """So a bank trained in the host belongs to the same base for the command line, which reads the file."""
    weights = load_file(host.folder / "models" / "checkpoints" / "small.safetensors")
    prefix = "model.diffusion_model."
    modules = [key.removeprefix(prefix).removesuffix(".weight") for key in weights if key.startswith(prefix)]
    by_layer = {layer: weights[f"{prefix}{name}.weight"] for name, layer in canonical_names(modules).items()}
    assert manifest(host)["base"]["fingerprint"] == fingerprint(by_layer)


@pytest.fixture(scope="module")
def exported(host, trained) -> str:
    """The concept "dog" as a file that stock loaders list."""
    export = {"class_type": "SeqLoRAExportConcept", "inputs": {"bank": ["bank", 0], "concept_name": "dog"}}
    export["inputs"]["file_name"] = ""
    assert "dog.safetensors" in text(host.run({"bank": composed("")["bank"], "export": export}), "export")
    return "dog.safetensors"


def test_an_exported_file_that_was_deleted_is_written_again(host, trained):
    def state() -> tuple[bool, bool]:
        """Whether the node has run, and whether its file is there."""
        entry = host.wait(host.queue(prompt))
        cached = next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")
        return "export" not in cached, file.is_file()

    export = {"bank": ["bank", 0], "concept_name": "cat", "file_name": "deleted"}
    prompt = {"bank": composed("")["bank"], "export": {"class_type": "SeqLoRAExportConcept", "inputs": export}}
    file = host.folder / "models" / "loras" / "deleted.safetensors"
    assert [state() for _ in range(3)] == [(True, True), (True, True), (False, True)]  # it meets its own file once
    file.unlink()
    assert state() == (True, True)


def test_an_exported_concept_acts_the_same_through_the_stock_loader(host, trained, exported):
    ours = draw(host, ["compose", 0], "ours", composed("dog:0.8"))
    stock = {"model": ["base", 0], "clip": ["base", 1], "lora_name": exported}
    stock |= {"strength_model": 0.8, "strength_clip": 0.8}
    theirs = draw(host, ["lora", 0], "theirs", {"lora": {"class_type": "LoraLoader", "inputs": stock}})
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(ours - trained).max() > 2


def test_other_loras_before_and_after_stay_in_effect(host, trained, exported):
    """The order of a stock LoRA and Compose Concepts does not matter, and both act."""
    lora = {"lora_name": exported, "strength_model": 1.5}
    nodes = composed("cat")
    first = {"lora": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["base", 0], **lora}}}
    before = {**nodes, **first}
    before["compose"] = {**nodes["compose"], "inputs": {**nodes["compose"]["inputs"], "model": ["lora", 0]}}
    after = {**nodes, "lora": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["compose", 0], **lora}}}
    one, other = draw(host, ["compose", 0], "one", before), draw(host, ["lora", 0], "other", after)
    assert np.abs(one - other).max() <= 2
    assert np.abs(one - draw(host, ["compose", 0], "cat", nodes)).max() > 2


def test_the_average_of_two_concepts_is_half_their_sum(host, trained):
    averaged = composed("dog:3, cat:3")
    averaged["compose"]["inputs"]["fusion"] = "weighted-average"
    average = draw(host, ["compose", 0], "average", averaged)
    assert (average == draw(host, ["compose", 0], "half", composed("dog:0.5, cat:0.5"))).all()
    assert np.abs(average - trained).max() > 2


def test_a_model_with_a_lora_on_it_is_trained_on_as_it_is_and_stays_so(host, trained, exported):
    lora = {"lora_name": exported, "strength_model": 1.5, "model": ["base", 0]}
    nodes = {"lora": {"class_type": "LoraLoaderModelOnly", "inputs": lora}}
    before = draw(host, ["lora", 0], "before-lora", nodes)
    prompt = {**loader(), **nodes, **training("cat", concept_name="on top", model=["lora", 0], steps=2)}
    assert "on top learned" in text(host.run(prompt), "train-cat")
    assert (draw(host, ["lora", 0], "after-lora", nodes) == before).all()
    assert (draw(host, ["base", 0], "after-plain") == trained).all()


def test_a_connected_bank_masks_and_captions_are_taken(host, trained):
    mask = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 512, "height": 512}}
    changes = {"concept_name": "masked", "bank": ["bank", 0], "bank_name": "unused", "masks": ["mask", 0]}
    prompt = {
        **{"bank": composed("")["bank"], "mask": mask, **loader()},
        **training("cat", **changes, captions="a photo of skscat cat", steps=1, gradient_checkpointing=True),
    }
    assert "masked learned" in text(host.run(prompt), "train-cat")
    assert not (host.folder / "models" / "seqlora" / "unused").exists()


def test_a_folder_of_pictures_of_different_sizes_is_trained_on(host, trained):
    Image.new("RGB", (200, 130), "red").save(host.folder / "input" / "cat photos" / "wide.png")
    folder = {"class_type": "SeqLoRALoadImageFolder", "inputs": {"folder": "cat photos"}}
    prompt = {**loader(), "folder": folder, **training("cat", concept_name="f", images=["folder", 0], steps=1)}
    prompt["train-cat"]["inputs"]["captions"] = ["folder", 1]
    host.run(prompt)
    assert next(c for c in manifest(host)["concepts"] if c["name"] == "f")["metrics"]["images"] == 6
    folder["inputs"]["folder"] = "nothing here"
    with pytest.raises(NodeError, match="no folder"):
        host.run(prompt)


def test_inspecting_exporting_renaming_and_removing(host, trained):
    bank = composed("")["bank"]

    def act(kind: str, **inputs):
        return host.run({"bank": bank, "act": {"class_type": kind, "inputs": {"bank": ["bank", 0], **inputs}}})

    host.run({**loader(), **training("dog", concept_name="temporary", steps=1)})
    report = {"class_type": "SeqLoRAInspectBank", "inputs": {"bank": ["bank", 0]}}
    saved = {"class_type": "SaveImage", "inputs": {"images": ["act", 1], "filename_prefix": "overlaps"}}
    outputs = host.run({"bank": bank, "act": report, "save": saved})
    report = text(outputs, "act")
    assert "temporary: 'sksdog dog'" in report
    assert re.search(r"\de-\d+  .+ - .+\n", report)
    assert re.search(r"layers of width 320: \d+ to \d+ directions free", report)
    assert (host.folder / "output" / outputs["save"]["images"][0]["filename"]).is_file()
    act("SeqLoRAExportConcept", concept_name="temporary", file_name="exported")
    assert (host.folder / "models" / "loras" / "exported.safetensors").is_file()
    with pytest.raises(NodeError, match="exists and is another file"):
        act("SeqLoRAExportConcept", concept_name="backpack", file_name="exported")
    for name, message in (("con", "file's name cannot be 'con'"), ("dog.", "cannot end with a dot")):
        with pytest.raises(NodeError, match=message):
            act("SeqLoRAExportConcept", concept_name="temporary", file_name=name)
    act("SeqLoRARenameConcept", concept_name="temporary", new_name="brief")
    act("SeqLoRARemoveConcept", concept_name="brief")
    assert {"temporary", "brief"}.isdisjoint(c["name"] for c in manifest(host)["concepts"])
    with pytest.raises(NodeError, match="no concept 'never there'"):
        act("SeqLoRARemoveConcept", concept_name="never there")


@pytest.mark.smoke
def test_cancel_ends_soon_keeps_the_work_and_resumes(host):
    prompt = {**loader(), **training("dog", bank_name="cancelled", steps=8)}
    job = host.queue_and_wait_for_progress(prompt, "train-dog", 2)
    host.request("/interrupt", {})
    entry = host.wait(job)
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    bank = Bank.open(host.folder / "models" / "seqlora" / "cancelled")
    checkpoint = bank.checkpoint_path("dog")
    done = Checkpoint.load(checkpoint).step
    assert 2 <= done <= 4
    assert not bank.concepts
    assert f"Resuming at step {done} of 8." in host.texts(prompt)
    assert [concept.name for concept in bank.refresh().concepts] == ["dog"]
    assert not checkpoint.exists()


def test_nothing_is_trained_twice_even_after_a_restart(host, trained):
    host.stop()
    fresh = start(host.folder)
    host.port, host.process = fresh.port, fresh.process
    before = manifest(host)["generation"]
    outputs = host.run({**loader(), **training("dog"), **training("cat")})
    assert "nothing was trained" in text(outputs, "train-dog")
    assert "nothing was trained" in text(outputs, "train-cat")
    assert manifest(host)["generation"] == before


def test_a_changed_setting_follows_the_policy(host, trained):
    with pytest.raises(NodeError, match="already has a concept 'cat'"):
        host.run({**loader(), **training("cat", steps=2)})
    another = {**loader(), **training("cat", steps=2, on_existing="new version")}
    assert "cat v2 learned" in text(host.run(another), "train-cat")
    assert "cat v2 was already in the bank" in text(host.run(another), "train-cat")
    replacing = {**loader(), **training("cat", concept_name="cat v2", steps=1, on_existing="replace")}
    assert "cat v2 learned" in text(host.run(replacing), "train-cat")
    assert "cat v2 was already in the bank" in text(host.run(replacing), "train-cat")
    assert [c["metrics"]["steps"] for c in manifest(host)["concepts"] if c["name"].startswith("cat")] == [3, 1]


def test_a_concept_that_was_removed_meanwhile_is_trained_again(host, trained):
    prompt = {**loader(), **training("dog", concept_name="gone", steps=1)}
    host.run(prompt)
    Bank.open(host.folder / "models" / "seqlora" / "pets").remove("gone")
    host.run(prompt)
    assert "gone" in {concept["name"] for concept in manifest(host)["concepts"]}


def test_a_cancelled_training_with_changed_settings_begins_anew_and_says_so(host, trained):
    job = host.queue_and_wait_for_progress(
        {**loader(), **training("dog", concept_name="half", steps=8)}, "train-dog", 2
    )
    host.request("/interrupt", {})
    host.wait(job)
    texts = host.texts({**loader(), **training("dog", concept_name="half", steps=2)})
    assert any(text.startswith("Starting again") and "steps was 8 and is now 2" in text for text in texts)
    assert next(c for c in manifest(host)["concepts"] if c["name"] == "half")["metrics"]["steps"] == 2


def test_training_on_a_model_that_carries_concepts_is_refused(host, trained):
    """The bank's concepts are part of the model while training; those of the connected one would count twice."""
    with pytest.raises(NodeError, match="before Compose Concepts"):
        host.run({**loader(), **composed("dog"), **training("cat", concept_name="n", model=["compose", 0])})


def test_captions_longer_than_a_prompt_window_are_cut(host, trained):
    batch = {"class_type": "ImageBatch", "inputs": {"image1": ["photo-cat", 0], "image2": ["photo-cat", 0]}}
    captions = "a photo of skscat cat " + "very fine " * 60 + "\na cat"
    changes = {"concept_name": "wordy", "images": ["batch", 0], "captions": captions, "batch_size": 2, "steps": 1}
    shown = text(host.run({**loader(), "batch": batch, **training("cat", **changes)}), "train-cat")
    assert "wordy learned" in shown and "2 images, 2 captions." in shown
    assert "1 of 2 texts are longer than 77 tokens" in shown
    assert "1 of 2 captions do not contain the token 'skscat'" in shown


def test_an_advanced_setting_reaches_the_training(host, trained):
    host.run({**loader(), **training("dog", concept_name="on some", steps=1, train_on="alternate")})
    [concept] = [c for c in manifest(host)["concepts"] if c["name"] == "on some"]
    assert concept["settings"]["train_on"] == "alternate"
    again = host.run({**loader(), **training("dog", concept_name="on some", steps=1, train_on="subsets")})
    assert "nothing was trained" in text(again, "train-dog")  # its old name, which saved graphs hold


WRONG = {
    "empty name": ({"concept_name": " "}, "name is empty"),
    "path as a name": ({"concept_name": "../x"}, "not a path"),
    "empty token": ({"concept_name": "n", "token": ""}, "token is empty"),
    "empty class word": ({"concept_name": "n", "class_word": ""}, "class word is empty"),
    "path as a bank": ({"concept_name": "n", "bank_name": "../../x"}, "not a path"),
    "device as a bank": ({"concept_name": "n", "bank_name": "Aux"}, "bank's name cannot be 'Aux'"),
    "rank out of range": ({"concept_name": "n", "rank": 0}, "rank"),
    "unknown method": ({"concept_name": "n", "method": "magic"}, "method"),
    "captions that do not fit": ({"concept_name": "n", "captions": "one\ntwo\nthree"}, "3 captions for 1 image"),
    "missing pictures": ({"concept_name": "n", "images": None}, "images"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_training_inputs_get_a_clear_error_and_the_server_lives(host, trained, case):
    changes, message = WRONG[case]
    prompt = {**loader(), **training("dog", **changes)}
    inputs = prompt["train-dog"]["inputs"]
    prompt["train-dog"]["inputs"] = {name: value for name, value in inputs.items() if value is not None}
    with pytest.raises(NodeError, match=message):
        host.run(prompt)
    assert host.request("/system_stats")


@pytest.mark.parametrize(
    ("concepts", "message"),
    [("bird", "no concept 'bird'"), ("dog:much", "not a number"), ("dog, dog:0.5", "more than once")],
)
def test_wrong_selections_get_a_clear_error(host, trained, concepts, message):
    with pytest.raises(NodeError, match=message):
        draw(host, ["compose", 0], "x", composed(concepts))


def test_what_nodes_have_to_say_is_shown_on_them(host, trained):
    """The front end shows progress texts; those of the API's "text" it shows on nodes of its own alone."""
    bank = composed("")["bank"]

    def shown(kind: str, **inputs) -> str:
        return host.texts({**loader(), "bank": bank, "act": {"class_type": kind, "inputs": inputs}})[-1]

    assert host.texts({**loader(), **training("dog", concept_name="said", steps=1)})[-1].startswith("said learned.")
    of_bank = {"bank": ["bank", 0]}
    assert "largest overlap" in shown("SeqLoRAInspectBank", **of_bank)
    assert "Wrote" in shown("SeqLoRAExportConcept", **of_bank, concept_name="said", file_name="said")
    assert "is now" in shown("SeqLoRARenameConcept", **of_bank, concept_name="said", new_name="told")
    assert "Removed told" in shown("SeqLoRARemoveConcept", **of_bank, concept_name="told")


def test_a_bank_names_the_file_of_its_base(host, trained):
    assert manifest(host)["base"]["name"] == "small.safetensors"


def test_a_bank_that_was_deleted_is_made_again_and_a_file_that_was_put_back_is_seen(host, trained):
    folder = host.folder / "models" / "seqlora" / "brief"
    prompt = {**loader(), **training("dog", bank_name="brief", steps=1)}
    host.run(prompt)
    shutil.rmtree(folder)
    assert "dog learned" in text(host.run(prompt), "train-dog")
    nodes = composed("", "brief")
    show = {**loader(), **nodes, "show": {"class_type": "PreviewAny", "inputs": {"source": ["bank", 1]}}}
    file = folder / Bank.open(folder).concept("dog").file
    away = file.replace(file.with_suffix(".away"))
    assert "missing" in text(host.run(show), "show")
    away.replace(file)
    assert "missing" not in text(host.run(show), "show")


def test_a_connected_bank_leaves_nothing_to_do_at_the_next_queue(host, trained):
    def cached() -> list[str]:
        entry = host.wait(host.queue(prompt))
        return next(data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached")

    changes = {"bank": ["bank", 0], "bank_name": "", "concept_name": "connected", "steps": 1}
    prompt = {"bank": composed("")["bank"], **loader(), **training("cat", **changes)}
    cached(), cached()  # learned; found in the bank
    assert "train-cat" in cached()


def test_a_bank_of_another_base_or_with_a_damaged_file_is_refused_by_name(host, trained):
    folder = host.folder / "models" / "seqlora" / "spoilt"
    shutil.copytree(host.folder / "models" / "seqlora" / "pets", folder)
    files = {concept.name: folder / concept.file for concept in Bank.open(folder).concepts}
    files["dog"].write_bytes(files["dog"].read_bytes()[:-1] + b"?")
    files["cat"].unlink()
    for concept, message in (("dog", "'dog' is damaged"), ("cat", "'cat' cannot be read")):
        with pytest.raises(NodeError, match=message):
            draw(host, ["compose", 0], "x", composed(concept, "spoilt"))
    document = json.loads((folder / "bank.json").read_text("utf-8"))
    document["base"] = {"name": "another model", "fingerprint": "0" * 32}
    (folder / "bank.json").write_text(json.dumps(document), "utf-8")
    message = "belongs to the base model another model"
    with pytest.raises(NodeError, match=message):
        draw(host, ["compose", 0], "x", composed("backpack", "spoilt"))
    with pytest.raises(NodeError, match=message):
        host.run({**loader(), **training("dog", bank_name="spoilt", concept_name="n")})


def test_banks_in_folders_of_extra_model_paths_are_found(host, trained):
    elsewhere = host.folder / "elsewhere"
    shutil.copytree(host.folder / "models" / "seqlora" / "pets", elsewhere / "banks" / "from elsewhere")
    settings = host.folder / "extra.yaml"
    settings.write_text(f"elsewhere:\n  base_path: '{elsewhere.as_posix()}'\n  seqlora: banks\n", "utf-8")
    other = start(host.folder, "--extra-model-paths-config", str(settings))
    try:
        info = other.request("/object_info/SeqLoRABankLoader")["SeqLoRABankLoader"]
        listed = json.dumps(info["input"]["required"]["bank_name"])
        assert "from elsewhere" in listed and "pets" in listed
        nodes = {**loader(), **composed("dog:1", "from elsewhere"), **picture(["compose", 0], "elsewhere")}
        assert other.run(nodes)["save"]["images"]
    finally:
        other.stop()


def test_a_bank_that_is_not_there_is_refused_when_the_prompt_is_queued(host, trained):
    nodes = composed("")
    for name, message in (("nowhere", "no bank"), ("../x", "not a path")):
        nodes["bank"]["inputs"]["bank_name"] = name
        with pytest.raises(NodeError, match=message):
            host.run({**loader(), **nodes, **picture(["compose", 0], "x")})


def test_every_node_has_tooltips_and_a_help_page_on_all_its_inputs(host):
    nodes = {name: info for name, info in host.request("/object_info").items() if name.startswith("SeqLoRA")}
    assert len(nodes) == 12
    for info in nodes.values():
        assert info["category"] == "SeqLoRA"
        help_page = host.fetch(f"/extensions/seqlora/docs/{info['name']}.md").decode()
        for group in ("required", "optional"):
            assert all(f"**{name}**" in help_page for name in info["input"].get(group, {}))
        assert all(info["output_tooltips"])
        for group in ("required", "optional"):
            assert all(options[1]["tooltip"] for options in info["input"].get(group, {}).values())


def test_step_sizes_are_shown_as_learning_rates_under_their_old_names(host):
    inputs = host.request("/object_info/SeqLoRATrainConcept")["SeqLoRATrainConcept"]["input"]["optional"]
    for name, shown in (("alpha", "lr coefficients"), ("beta", "lr basis")):
        options = inputs[name][1]
        assert options["display_name"] == shown
        assert "earning rate" in options["tooltip"]


@pytest.mark.smoke
def test_the_pack_is_imported_without_a_complaint(host):
    lines = [line for line in host.log().replace("\\", "/").splitlines() if "custom_nodes/seqlora" in line]
    assert any("seconds" in line for line in lines)
    assert not [line for line in lines if re.search(r"FAILED|Cannot import|warning|\[ERROR\]", line, re.IGNORECASE)]
