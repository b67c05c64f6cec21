"""Fusions that read the base, in a real ComfyUI: they look at the concepts' words and pictures through the graph."""

import re

import numpy as np
import pytest
from comfy_server import NodeError
from graphs import composed, draw, loader, picture, text, training
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(host) -> np.ndarray:
    """The plain sum of two LoRAs that know nothing of each other; one of them reads pictures, too."""
    changes = {"bank_name": "fused", "method": "lora", "alpha": 0.01, "beta": 0.01}
    host.run({**loader(), **training("dog", layers="cross", **changes)})
    host.run({**loader(), **training("cat", **changes)})
    return fused_picture(host, "sum")[0]


def fused_picture(host, fusion: str, concepts: str = "dog:4, cat:4") -> tuple[np.ndarray, str]:
    """A picture of the fused concepts, and the node's report."""
    nodes = composed(concepts, "fused")
    nodes["compose"]["inputs"] |= {"fusion": fusion, "clip": ["base", 1]}
    nodes["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["compose", 2]}}
    outputs = host.run({**loader(), **nodes, **picture(["compose", 0], fusion)})
    file = host.folder / "output" / outputs["save"]["images"][0]["filename"]
    return np.asarray(Image.open(file)).astype(int), text(outputs, "show")


@pytest.mark.parametrize("fusion", ["loraclr", "custom-diffusion", "ssr-merge"])
def test_concepts_are_fused_from_what_they_read_and_the_cost_is_told(host, together, fusion):
    drawn, report = fused_picture(host, fusion)
    assert np.abs(drawn - together).max() > 2
    assert np.abs(drawn - draw(host, ["base", 0], "plain")).max() > 2
    assert re.search(r"in [\d.]+ s with [1-9]\d* MB", report)


def test_one_concept_alone_is_fused_into_nearly_itself(host, together):
    """Least squares on its own words and pictures leaves most of what it does to them."""
    alone, again = (fused_picture(host, fusion, "dog:4")[0] for fusion in ("sum", "gradient-fusion"))
    plain = draw(host, ["base", 0], "plain")
    assert np.abs(again - alone).mean() < np.abs(plain - alone).mean() / 1.5


def test_ties_merges_concepts_without_a_clip(host, together):
    nodes = composed("dog:4, cat:4", "fused")
    nodes["compose"]["inputs"]["fusion"] = "ties"
    drawn = draw(host, ["compose", 0], "ties", nodes)
    assert np.abs(drawn - together).max() > 2
    assert np.abs(drawn - draw(host, ["base", 0], "plain")).max() > 2


def test_without_a_clip_the_user_is_told_what_to_connect(host, together):
    nodes = composed("dog", "fused")
    nodes["compose"]["inputs"]["fusion"] = "loraclr"
    with pytest.raises(NodeError, match="connect the base's CLIP to the input clip"):
        draw(host, ["compose", 0], "x", nodes)
