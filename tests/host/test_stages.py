"""From Run to the first step something is always reported, and after Cancel where the run stopped."""

import json
import re
import struct

import pytest
from comfy_server import PROGRESS_TEXT, NodeError
from graphs import loader, text, training

pytestmark = pytest.mark.slow


def skipping(layer: int) -> dict:
    """A CLIP that no other test has encoded with: the host keeps embeddings."""
    inputs = {"clip": ["base", 1], "stop_at_clip_layer": layer}
    return {**loader(), "skip": {"class_type": "CLIPSetLastLayer", "inputs": inputs}}


def texts_until_cancelled(host, prompt: dict, at: str) -> list[str]:
    """Run a prompt, cancel it once a progress text contains `at`; all texts that reach the client that queued it."""
    texts: list[str] = []
    with host._listening() as (ws, client):
        host.queue(prompt, client)
        while True:
            frame = ws.recv()
            if isinstance(frame, str):
                message = json.loads(frame)
                if message["type"] == "execution_error":
                    raise NodeError(message["data"]["exception_message"])
                if message["type"] == "execution_interrupted":
                    return texts
                continue
            kind, length = struct.unpack(">II", frame[:8])
            if kind == PROGRESS_TEXT:
                texts.append(frame[8 + length :].decode())
                if at in texts[-1]:
                    host.request("/interrupt", {})


@pytest.fixture(scope="module")
def two_runs(host) -> tuple[list[str], str]:
    """The texts of a graph with two Train nodes, and what the console has of it."""
    changes = {"bank_name": "stages", "clip": ["skip", 0], "steps": 2, "seed": 77}  # no other test's: latents are kept
    before = len(host.log())
    texts = host.texts({**skipping(-3), **training("dog", **changes), **training("cat", **changes)})
    return texts, host.log()[before:]


STAGES = [
    r"checking the images and models",
    r"encoding 1 image and \d+ prompts",
    r"loading the model",
    r"measuring \d+ protected prompts",
    r"measuring the concept's own images",
    r"choosing directions",
    r"training",
]


def test_every_stage_is_shown_on_the_node_and_in_the_console(two_runs):
    texts, log = two_runs
    shown = list(dict.fromkeys(line.split(":")[0] for line in texts))[: len(STAGES)]
    for expected, line in zip(STAGES, shown, strict=True):
        assert re.fullmatch(expected, line)
        assert re.search(f"SeqLoRA: {expected}\n", log)
    assert re.search(r"SeqLoRA: (dog|cat) learned\. Final loss", log)
    assert re.search(r"2/2 .*\n.*SeqLoRA: (dog|cat) learned", log)  # the progress bar ends before the result


def test_a_second_node_encodes_only_what_is_new(two_runs):
    starts = [index for index, line in enumerate(two_runs[0]) if line.startswith("checking")]
    first, second = two_runs[0][: starts[1]], two_runs[0][starts[1] :]
    numbers = [
        next(int(n) for line in own for n in re.findall(r"image and (\d+) prompts", line)) for own in (first, second)
    ]
    assert numbers[0] > 25
    assert numbers[1] == 5  # those with its own token, without one that CLIP was checked with


def test_the_same_run_encodes_nothing_again_after_cancel_and_says_where_it_stopped(host):
    prompt = {**skipping(-4), **training("dog", bank_name="cancelled early", clip=["skip", 0], steps=30)}
    before = len(host.log())
    early = texts_until_cancelled(host, prompt, "prompts: 8 of")
    assert early[-1] == "Stopped before the first step, and nothing was lost; run again to continue."
    late = texts_until_cancelled(host, prompt, "step 2 of 30")
    remaining = [int(number) for line in late for number in re.findall(r"(\d+) prompts", line) if "encoding" in line]
    assert max(remaining, default=0) < 30  # without those of the run before
    stopped = re.fullmatch(r"Stopped at step (\d+) of 30; run again to continue\.", late[-1])
    assert 2 <= int(stopped[1]) <= 5
    for line in (early[-1], late[-1]):
        assert f"SeqLoRA: {line}" in host.log()[before:]
    again = texts_until_cancelled(host, prompt, f"step {int(stopped[1]) + 1} of")
    assert not any("encoding" in line for line in again)
    assert f"training: {stopped[1]} of 30\nResuming at step {stopped[1]} of 30." in again


def test_what_is_said_while_training_stays_in_the_result(host):
    """A progress text is replaced by the next one within a second."""
    changes = {"bank_name": "words", "token": "photo", "steps": 1}
    prompt = {**loader(), **training("dog", **changes)}
    texts_until_cancelled(host, {**loader(), **training("dog", **{**changes, "steps": 30})}, "step 1 of 30")
    assert "Starting again" in text(host.run(prompt), "train-dog")
