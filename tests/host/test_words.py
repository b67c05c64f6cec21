"""Learned words in a real ComfyUI: prompts of the stock nodes name them, and training passes gradients to them."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_server import NodeError, host_checkout, host_python
from graphs import composed, draw, loader, picture, text, training
from PIL import Image
from safetensors.torch import load_file

from seqlora_core.bank import Bank
from seqlora_core.training.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def used(base_directory) -> dict:
    script = Path(__file__).parent / "use_words.py"
    command = [host_python(), script, host_checkout(), base_directory]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_word_is_encoded_as_its_vectors_are_as_a_stock_embedding(used):
    """Plain, weighted, in any case, before punctuation, the longest first, several, and beside `embedding:`."""
    assert max(used["pairs"].values()) < 1e-5, used["pairs"]
    assert used["unknowing"] > 1e-2


def test_words_stay_known_after_a_clone_a_lora_and_clip_skip(used):
    assert max(used["after"].values()) < 1e-5, used["after"]


def test_a_word_taught_again_replaces_the_one_known_before(used):
    assert used["chain"] == ["A"]


@pytest.mark.parametrize("clip", ["plain", "skipping"])
def test_gradients_reach_a_word_through_the_clip_as_it_encodes(used, clip):
    assert used["gradients"][clip]["gradient"] < 0.01
    assert used["gradients"][clip]["encoded"] < 1e-4


def test_teaching_and_training_leave_the_clip_as_it_was(used):
    assert used["untouched"]


def test_the_fingerprint_of_a_clip_is_that_of_its_file(used):
    assert used["same fingerprint"]


def test_a_class_word_starts_from_its_own_vector(used):
    assert used["class word"] >= 1


def learning(subject: str, **changes) -> dict:
    return training(subject, **{"bank_name": "words", "token_vectors": 2, "token_share": 0.5, "steps": 4, **changes})


def bank_of(host, name: str = "words") -> Bank:
    return Bank.open(host.folder / "models" / "seqlora" / name)


def image_of(host, nodes: dict, model: list, clip: list, prompt: str, name: str) -> np.ndarray:
    """The picture that stock nodes draw of a prompt."""
    drawing = picture(model, name)
    drawing["words"]["inputs"] = {"clip": clip, "text": prompt}
    saved = host.run({**loader(), **nodes, **drawing})["save"]["images"][0]["filename"]
    return np.asarray(Image.open(host.folder / "output" / saved)).astype(int)


@pytest.fixture(scope="module")
def learned(host) -> str:
    """What Train Concept said of a concept whose word it learned."""
    before = draw(host, ["base", 0], "before-words")
    shown = text(host.run({**loader(), **learning("dog")}), "train-dog")
    assert (draw(host, ["base", 0], "after-words") == before).all()
    return shown


def test_a_learned_concept_is_called_by_its_word_alone(host, learned):
    assert "dog learned" in learned
    concept = bank_of(host).concept("dog")
    assert concept.subject == "sksdog"
    assert bank_of(host).words()["sksdog"].shape == (2, 768)
    assert "nothing was trained" in text(host.run({**loader(), **learning("dog")}), "train-dog")


def test_every_clip_output_and_the_exported_files_draw_the_same(host, learned):
    prompt = "a sksdog, sitting"
    trained = image_of(host, learning("dog"), ["train-dog", 2], ["train-dog", 5], prompt, "trained")
    nodes = composed("dog", "words")
    nodes["compose"]["inputs"]["clip"] = ["base", 1]
    nodes["bank"]["inputs"]["clip"] = ["base", 1]
    for name, clip in (("composed", ["compose", 3]), ("loaded", ["bank", 2])):
        assert (image_of(host, nodes, ["compose", 0], clip, prompt, name) == trained).all()
    export = {"bank": ["bank", 0], "concept_name": "dog", "file_name": "worded"}
    nodes |= {"export": {"class_type": "SeqLoRAExportConcept", "inputs": export}}
    assert "embedding:sksdog" in text(host.run({**loader(), **nodes}), "export")
    lora = {"model": ["base", 0], "clip": ["base", 1], "lora_name": "worded.safetensors"}
    lora |= {"strength_model": 1.0, "strength_clip": 1.0}
    stock = {"lora": {"class_type": "LoraLoader", "inputs": lora}}
    theirs = image_of(host, stock, ["lora", 0], ["lora", 1], "a embedding:sksdog , sitting", "stock")
    assert np.abs(theirs - trained).max() <= 1
    assert np.abs(image_of(host, stock, ["lora", 0], ["lora", 1], prompt, "unknown") - trained).max() > 1


def test_an_export_writes_over_no_other_embedding(host, learned):
    other = host.folder / "models" / "embeddings" / "sksdog.safetensors"
    other.parent.mkdir(exist_ok=True)
    content = other.read_bytes() if other.exists() else None
    other.write_bytes(b"another one")
    export = {"bank": ["bank", 0], "concept_name": "dog", "file_name": "refused"}
    nodes = {**composed("", "words"), "export": {"class_type": "SeqLoRAExportConcept", "inputs": export}}
    with pytest.raises(NodeError, match="exists and is another file"):
        host.run({**loader(), **nodes})
    assert other.read_bytes() == b"another one"
    assert not (host.folder / "models" / "loras" / "refused.safetensors").exists()
    other.unlink()
    if content is not None:
        other.write_bytes(content)


def test_without_a_clip_only_what_needs_it_fails_and_says_what_to_connect(host, learned):
    nodes = composed("dog", "words")
    host.run({**loader(), **nodes, **picture(["compose", 0], "no-clip")})
    with pytest.raises(NodeError, match="connect the base model's CLIP to the input clip of Compose Concepts"):
        drawing = picture(["compose", 0], "blocked")
        drawing["words"]["inputs"]["clip"] = ["compose", 3]
        host.texts({**loader(), **nodes, **drawing})


@pytest.fixture(scope="module")
def uncancelled(host) -> Bank:
    host.run({**loader(), **learning("dog", bank_name="whole", steps=8)})
    return bank_of(host, "whole")


@pytest.mark.parametrize("step", [2, 9])  # 8 steps learn the word
def test_a_run_cancelled_in_either_phase_ends_at_the_same_tensors(host, uncancelled, step):
    name = f"cancelled at {step}"
    prompt = {**loader(), **learning("dog", bank_name=name, steps=8)}
    job = host.queue_and_wait_for_progress(prompt, "train-dog", step)
    host.request("/interrupt", {})
    host.wait(job)
    checkpoint = Checkpoint.load(bank_of(host, name).checkpoint_path("dog"))
    assert checkpoint.has_factors == (step > 8)
    assert any("Resuming at step" in shown for shown in host.texts(prompt))
    for file in ("embeddings/dog.safetensors", "concepts/dog.safetensors"):
        one, other = (load_file(bank.folder / file) for bank in (uncancelled, bank_of(host, name)))
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_concept_of_a_version_without_words_is_kept_until_it_is_replaced(host, learned):
    host.run({**loader(), **training("cat", bank_name="earlier")})
    path = bank_of(host, "earlier").folder / "bank.json"
    manifest = json.loads(path.read_text("utf-8"))
    for name in ("token_vectors", "token_share", "lr_token"):
        del manifest["concepts"][0]["settings"][name]
    path.write_text(json.dumps(manifest), "utf-8")
    unchanged = text(host.run({**loader(), **training("cat", bank_name="earlier")}), "train-cat")
    assert "unchanged; nothing was trained" in unchanged
    nodes = training("cat", bank_name="earlier", token_vectors=2)
    said = text(host.run({**loader(), **nodes}), "train-cat")
    assert "has no learned word" in said and "'replace'" in said
    nodes["train-cat"]["inputs"]["on_existing"] = "replace"
    assert "cat learned" in text(host.run({**loader(), **nodes}), "train-cat")
    assert bank_of(host, "earlier").concept("cat").subject == "skscat"


def test_a_fusion_reads_the_learned_words(host, learned):
    host.run({**loader(), **learning("cat")})
    nodes = composed("dog:4, cat:4", "words")
    nodes["compose"]["inputs"] |= {"fusion": "loraclr", "clip": ["base", 1]}
    fused = image_of(host, nodes, ["compose", 0], ["compose", 3], "sksdog and skscat", "fused-words")
    nodes["compose"]["inputs"]["fusion"] = "sum"
    summed = image_of(host, nodes, ["compose", 0], ["compose", 3], "sksdog and skscat", "summed-words")
    assert np.abs(fused - summed).max() > 2
