"""SeqLoRA Training Settings: what it changes, what stays as it was without it, and what is said of it."""

import json

import pytest
from comfy_server import NodeError
from graphs import loader, text, training

pytestmark = pytest.mark.slow


def settings(**values) -> dict:
    return {"settings": {"class_type": "SeqLoRATrainingSettings", "inputs": values}}


def stored(host, concept: str) -> dict:
    """What the bank has of a concept."""
    bank = json.loads((host.folder / "models" / "seqlora" / "wishes" / "bank.json").read_text("utf-8"))
    return next(entry for entry in bank["concepts"] if entry["name"] == concept)


def test_a_graph_without_the_node_is_trained_as_before(host):
    prompt = {**loader(), **training("dog", bank_name="wishes", optimizer="gradient", batch_size=2)}
    assert "Training Settings" not in text(host.run(prompt), "train-dog")
    kept = stored(host, "dog")["settings"]
    assert (kept["optimizer"], kept["batch_size"], kept["lr_coefficients"]) == ("gradient", 2, 0.02)
    assert (kept["caption_prefix"], kept["min_snr_gamma"], kept["hold_out"]) == ("", 0, 0)


def test_its_values_are_used_instead_of_the_node_s_and_are_named(host):
    changes = {"bank_name": "wishes", "concept_name": "set", "batch_size": 2, "settings": ["settings", 0]}
    own = {"alpha": 0.01, "batch_size": 1, "optimizer": "gradient", "min_snr_gamma": 5.0, "caption_prefix": "painted,"}
    prompt = {**loader(), **settings(**own), **training("cat", **changes)}
    shown = text(host.run(prompt), "train-cat")
    assert "alpha 0.01 (instead of 0.02)" in shown and "optimizer gradient (instead of adam)" in shown
    assert "batch_size 1 (instead of 2)" in shown  # its defaults count, too
    assert "min_snr_gamma 5.0" in shown and "caption_prefix 'painted,'" in shown
    assert "noise_offset" not in shown
    kept = stored(host, "set")["settings"]
    assert (kept["lr_coefficients"], kept["batch_size"], kept["min_snr_gamma"]) == (0.01, 1, 5.0)
    assert "nothing was trained" in text(host.run(prompt), "train-cat")
    prompt["settings"]["inputs"]["min_snr_gamma"] = 0.0
    with pytest.raises(NodeError, match="other settings"):
        host.run(prompt)


def test_previews_have_the_prompt_and_seed_that_are_set_and_change_nothing(host):
    changes = {"concept_name": "dog", "steps": 2, "token_vectors": 0, "settings": ["settings", 0]}
    seen = []
    for own in ({}, {"preview_seed": 7}, {"preview_prompt": "a sksdog in snow"}, {"preview_seed": 7}):
        nodes = {**loader(), **settings(preview_every=2, **own)}
        changes["bank_name"] = f"previewed {len(seen)}"  # previews show earlier concepts, too
        pictures = host.previews({**nodes, **training("dog", **changes)})
        assert len(pictures) == 2  # of steps 0 and 2
        seen.append(pictures[0][1])  # before the first step, what the model draws
    assert seen[1] == seen[3]
    assert len(set(seen)) == 3
    again = {**loader(), **settings(preview_every=0), **training("dog", **changes)}
    assert "nothing was trained" in text(host.run(again), "train-dog")


def test_the_number_of_steps_may_be_left_to_the_node(host):
    prompt = {**loader(), **training("dog", bank_name="wishes", concept_name="auto", steps=0, rank=4000)}
    with pytest.raises(NodeError, match="128"):  # the host's own bound of rank; steps 0 is within its bounds
        host.run(prompt)
    info = host.request("/object_info/SeqLoRATrainConcept")["SeqLoRATrainConcept"]["input"]["required"]["steps"]
    assert info[1]["min"] == 0 and "100 per image" in info[1]["tooltip"]


def test_images_are_held_out_and_masked_by_their_alpha_channel(host):
    nodes = {
        "folder": {"class_type": "SeqLoRALoadImageFolder", "inputs": {"folder": "cat photos"}},
        "mask": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 512, "height": 512}},
        "cut": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["folder", 0], "alpha": ["mask", 0]}},
    }
    changes = {"bank_name": "wishes", "concept_name": "held", "images": ["cut", 0], "settings": ["settings", 0]}
    own = settings(hold_out=2, alpha_masks=True, caption_dropout=0.5)
    shown = text(host.run({**loader(), **nodes, **own, **training("cat", **changes)}), "train-cat")
    assert "of the held-out images" in shown and "alpha_masks changes nothing" not in shown
    metrics = stored(host, "held")["metrics"]
    images = len(list((host.folder / "input" / "cat photos").glob("*.jpg")))
    assert metrics["images"] == images - 2 and metrics["held_out_steps"][-1] > 0
    with pytest.raises(NodeError, match="leaves none to train on"):
        one = {**changes, "images": ["photo-cat", 0], "concept_name": "one"}
        host.run({**loader(), **own, **training("cat", **one)})
    plain = settings(alpha_masks=True)
    no_alpha = {**changes, "images": ["photo-cat", 0], "concept_name": "plain"}
    shown = text(host.run({**loader(), **plain, **training("cat", **no_alpha)}), "train-cat")
    assert "alpha_masks changes nothing" in shown
