"""Preview pictures on the node while it trains."""

import io

import pytest
import torch
from graphs import loader, text, training
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def test_previews_are_shown_while_training_and_change_nothing_of_the_result(host):
    watched = training("dog", bank_name="watched", steps=4, preview_every=2)
    pictures = host.previews({**loader(), **watched})
    assert [node for node, _ in pictures] == ["train-dog"] * 3  # steps 0, 2 and 4
    shown = [Image.open(io.BytesIO(picture)).convert("RGB") for _, picture in pictures]
    assert all(low < high for picture in shown for low, high in picture.getextrema())  # not one colour
    assert len({picture.tobytes() for picture in shown}) == 3
    unwatched = training("dog", bank_name="unwatched", steps=4, preview_every=0)
    assert host.previews({**loader(), **unwatched}) == []
    banks = host.folder / "models" / "seqlora"
    with_previews, without = (
        load_file(banks / bank / "concepts" / "dog.safetensors") for bank in ("watched", "unwatched")
    )
    assert with_previews.keys() == without.keys()
    assert all(torch.equal(tensor, without[key]) for key, tensor in with_previews.items())


@pytest.mark.parametrize("client", ["somebody", None])
def test_texts_and_previews_reach_no_client_but_the_one_that_queued(host, client):
    prompt = {**loader(), **training("dog", bank_name=f"of {client}", steps=2, preview_every=1)}
    assert host.kinds_of_frames_elsewhere(prompt, client) == set()
    assert "nothing was trained" in text(host.run(prompt), "train-dog")  # so that it was trained then


def test_switching_previews_on_is_no_other_training(host):
    prompt = {**loader(), **training("cat", bank_name="switched", preview_every=0)}
    host.run(prompt)
    prompt["train-cat"]["inputs"]["preview_every"] = 1
    assert "nothing was trained" in host.run(prompt)["train-cat"]["text"][0]
