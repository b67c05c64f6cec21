"""What is encoded before the first step: each prompt once, in batches, as one by one, and never with another CLIP's."""

import json
import subprocess
from pathlib import Path

import pytest
from comfy_server import host_checkout, host_python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoded(base_directory) -> dict:
    script = Path(__file__).parent / "encode_prompts.py"
    command = [host_python(), script, host_checkout(), base_directory]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CLIPS = ["first", "patched", "skipping", "overridden", "replaced part", "original", "changed in place"]


@pytest.mark.parametrize("case", CLIPS)
def test_prompts_encoded_together_are_what_they_are_one_by_one(encoded, case):
    """With weights, a textual inversion and more tokens than a window; the CLIP patched, skipping, changed."""
    assert encoded[case]["shape"] == [7, 77, 768]
    assert encoded[case]["difference"] < 1e-4


@pytest.mark.parametrize("case", ["first", "patched", "skipping", "changed in place"])
def test_different_prompts_take_one_pass_together(encoded, case):
    assert encoded[case]["passes"] == [5 + 1]  # and the empty window that the host compares weights with


@pytest.mark.parametrize("case", ["again", "patched alike", "original"])
def test_what_the_same_clip_has_encoded_is_not_encoded_again(encoded, case):
    assert encoded[case]["passes"] == []
    assert encoded[case]["difference"] < 1e-4


@pytest.mark.parametrize("case", ["overridden", "replaced part"])
def test_a_clip_changed_by_another_node_encodes_one_by_one(encoded, case):
    assert len(encoded[case]["passes"]) == 5


def test_what_is_kept_is_bounded_and_keeps_no_clip_alive(encoded):
    kept = encoded["kept"]
    assert not kept["CLIP is alive"]
    assert kept["trainable"]
    assert kept["newest of ten"] == [False] * 8 + [True] * 2
