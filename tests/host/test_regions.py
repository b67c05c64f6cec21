"""Regions and own words in a real ComfyUI: alone, next to other nodes, and where they cannot be used."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from comfy_server import NodeError, host_checkout, host_python
from graphs import loader, text, training
from PIL import Image

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
# What each mistake is answered with.
MESSAGES = {
    "outside": "lies outside the canvas",
    "empty box": "is empty",
    "no prompt": "has no prompt",
    "empty mask": "paint an area in white",
    "two masks": "The input mask has 2 masks",
    "two boxes": "The input bounding_box has 2 boxes",
    "box of words": "is not a box with numbers",
    "box without a width": "is not a box with numbers",
    "times": "ends at 0.5, before it starts",
    "unknown": "has no concept 'horse'",
    "not loaded": "has the concept 'cat', which is not selected",
    "word not loaded": "names 'skscat cat', whose concept 'cat' is not selected",
    "not encoded for it": "encode all prompts with the output clip of the Compose Concepts node",
    "encoded for others": "was encoded for other concepts or regions than the model's",
    "joined": "was joined with another after it was encoded",
    "twice": "select all concepts in one node",
    "twice in Compose Concepts": "select all concepts in one node",
    "attached": "already carries the concept 'dog'",
    "training": "connect the model from before Compose Concepts",
    "fusion": "The fusion loraclr changes concepts as a whole",
    "no clip": "connect the base's CLIP to the input clip",
    "tiled": "leave that node out",
    # Overlaps are shared, and these nodes keep what a conditioning says of its tokens.
    "overlap": "",
    "other nodes": "",
}


@pytest.fixture(scope="module")
def used(base_directory) -> dict:
    script = Path(__file__).parent / "use_regions.py"
    command = [host_python(), script, host_checkout(), base_directory]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_region_over_the_whole_canvas_is_the_stock_patch(used):
    """Also on odd latents, with long prompts, prompts in the other order, and other nodes on the model."""
    assert max(used["against stock"].values()) < TOLERANCE, used["against stock"]
    assert used["acts"] > 0.1


def test_regions_take_the_unet_evaluations_of_a_plain_prompt(used):
    assert used["evaluations"]["plain"] == [4, 4]  # two images with guidance, two steps
    assert all(own == [4, 4] for own in used["evaluations"].values()), used["evaluations"]


def test_a_concept_on_own_words_changes_the_keys_of_its_word_alone(used):
    for prompt in used["own rows"].values():
        assert len(prompt["rows"]) == 6  # two vectors of the dog's, four tokens of "skscat cat"
        assert prompt["from alone"] < TOLERANCE
    assert min(used["own rows"]["long"]["rows"]) > 77


def test_a_region_acts_in_its_place_and_time_alone(used):
    for inside, outside in used["places"].values():
        assert inside > 0.1 > outside == 0
    assert used["times"] == {"late": [True, True, False, False], "early": [True, True, False, False]}


def test_own_words_are_those_that_the_command_line_finds(used):
    assert used["unlike the core's"] == []


def test_own_words_are_noted_behind_clones_and_clip_skip(used):
    assert used["survives"] == {"cloned": 6, "skipping": 6}


def test_every_mistake_is_answered_in_one_sentence(used):
    answers = used["answers"]
    for name, message in MESSAGES.items():
        assert message in answers[name], (name, answers[name])
        assert bool(message) == bool(answers[name])
        assert "\n" not in answers[name]


def test_the_report_says_what_is_cut_and_what_does_nothing(used):
    assert "region 1 (a sksdog): dog" in used["answers"]["beyond"]
    assert "reaches beyond the canvas and is cut to 0,0,0.5,1" in used["answers"]["beyond"]
    assert "No prompt names 'skscat cat': the concept 'cat' does nothing." in used["answers"]["unnamed"]


def test_a_region_that_acted_in_no_step_is_reported_after_the_sampling(used):
    [line] = used["logged"]
    assert line.startswith("SeqLoRA: The region 'a sksdog' acts in no step of this sampling")


def test_model_and_clip_stay_as_they_were(used):
    assert used["untouched"]


def region(prompt: str, left: float, right: float, **more) -> dict:
    box = {"left": left, "top": 0.0, "right": right, "bottom": 1.0}
    settings = {"prompt": prompt, **box, "strength": 0.5, "start": 0.0, "end": 1.0, "feather": 0.1, **more}
    return {"class_type": "SeqLoRARegion", "inputs": settings}


def graph(**changes) -> dict:
    """Two regions in a chain, one of them with a mask, drawn in API format."""
    compose = {"model": ["base", 0], "bank": ["bank", 0], "clip": ["base", 1], "regions": ["right", 0]}
    compose |= {"prompt": "a sksdog dog left of a skscat cat", "negative": "blurry", **changes}
    sampling = {"seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        **loader(),
        "bank": {"class_type": "SeqLoRABankLoader", "inputs": {"bank_name": "in regions"}},
        "mask": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 64}},
        "left": region("a sksdog dog", 0.0, 0.5),
        "right": region("a skscat cat", 0.5, 1.0, regions=["left", 0], mask=["mask", 0], feather=0.0),
        "compose": {"class_type": "SeqLoRAComposeRegions", "inputs": compose},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 72, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                **{"model": ["compose", 0], "positive": ["compose", 1], "negative": ["compose", 2]},
                **{"latent_image": ["empty", 0], **sampling},
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["base", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "regions"}},
    }


def drawn(host, nodes: dict) -> np.ndarray:
    saved = host.run(nodes)["save"]["images"][0]["filename"]
    return np.asarray(Image.open(host.folder / "output" / saved)).astype(int)


@pytest.fixture(scope="module")
def trained(host) -> None:
    """A bank of two concepts."""
    for subject in ("dog", "cat"):
        changes = {"bank_name": "in regions", "alpha": 0.1, "method": "orthogonal"}
        host.run({**loader(), **training(subject, **changes)})


@pytest.mark.smoke
def test_regions_draw_headless_and_their_concepts_act(host, trained):
    acting = drawn(host, graph())
    assert acting.shape == (72, 128, 3)
    assert np.abs(acting - drawn(host, graph(concepts="dog:0, cat:0"))).max() > 2
    shown = text(host.run(graph(negative="ugly")), "compose")
    assert "region 1 (a sksdog dog): dog" in shown and "region 2 (a skscat cat): cat" in shown


def test_a_bad_region_fails_the_run_with_its_sentence(host, trained):
    nodes = graph()
    nodes["left"]["inputs"] |= {"left": 1.5, "right": 2.0}
    with pytest.raises(NodeError, match="lies outside the canvas: give fractions between 0 and 1"):
        host.run(nodes)


def test_stock_nodes_draw_own_words_behind_compose_concepts(host, trained):
    nodes = graph()
    prompts = {
        name: {"class_type": "CLIPTextEncode", "inputs": {"clip": ["compose", 3], "text": prompt}}
        for name, prompt in (("positive", "a sksdog dog"), ("negative", "blurry"))
    }
    inputs = {"model": ["base", 0], "bank": ["bank", 0], "concepts": "", "clip": ["base", 1], "acts_on": "own-words"}
    nodes["compose"] = {"class_type": "SeqLoRAComposeConcepts", "inputs": inputs}
    nodes["sample"]["inputs"] |= {"positive": ["positive", 0], "negative": ["negative", 0]}
    own = drawn(host, {**nodes, **prompts})
    inputs["acts_on"] = "everything"
    everything = drawn(host, {**nodes, **prompts})
    del inputs["acts_on"]
    assert np.abs(own - everything).max() > 0
    assert (drawn(host, {**nodes, **prompts}) == everything).all()
    inputs["acts_on"] = "own-words"
    prompts["negative"]["inputs"]["clip"] = ["base", 1]
    with pytest.raises(NodeError, match="encode all prompts with the output clip of the Compose Concepts node"):
        host.run({**nodes, **prompts})
