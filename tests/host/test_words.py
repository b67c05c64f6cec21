"""Learned words in a real ComfyUI: prompts of the stock nodes name them, and training passes gradients to them."""

import json
import subprocess
from pathlib import Path

import pytest
from comfy_server import host_checkout, host_python

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
