"""Preview pictures on the node while it trains."""

import io

import pytest
import torch
from graphs import loader, training
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def test_previews_are_shown_while_training_and_change_nothing_of_the_result(host):
    watched = training("dog", bank_name="watched", steps=4, preview_every=2)
    pictures = host.previews({**loader(), **watched})
    assert [node for node, _ in pictures] == ["train-dog", "train-dog"]
    shown = [Image.open(io.BytesIO(picture)).convert("RGB") for _, picture in pictures]
    assert all(low < high for picture in shown for low, high in picture.getextrema())  # not one colour
    assert shown[0].tobytes() != shown[1].tobytes()
    unwatched = training("dog", bank_name="unwatched", steps=4, preview_every=0)
    assert host.previews({**loader(), **unwatched}) == []
    banks = host.folder / "models" / "seqlora"
    with_previews, without = (
        load_file(banks / bank / "concepts" / "dog.safetensors") for bank in ("watched", "unwatched")
    )
    assert with_previews.keys() == without.keys()
    assert all(torch.equal(tensor, without[key]) for key, tensor in with_previews.items())


def test_switching_previews_on_is_no_other_training(host):
    prompt = {**loader(), **training("cat", bank_name="switched", preview_every=0)}
    host.run(prompt)
    prompt["train-cat"]["inputs"]["preview_every"] = 1
    assert "nothing was trained" in host.run(prompt)["train-cat"]["text"][0]
