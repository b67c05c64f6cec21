"""Common wishes on the command line: steps by the number of images, captions, masks, held-out images."""

import json
from pathlib import Path

import pytest
from PIL import Image
from training_runs import train_command

from seqlora_core.bank import Bank
from seqlora_core.cli.main import main
from seqlora_core.training import config


@pytest.fixture
def few_steps(monkeypatch):
    """Two steps per image, as a real number would take minutes."""
    for name, value in (("STEPS_PER_IMAGE", 2), ("FEWEST_STEPS", 1), ("MOST_STEPS", 50)):
        monkeypatch.setattr(config, name, value)


def test_a_run_with_every_wish_is_trained_reported_and_found_again(base_folder, tmp_path, few_steps, capsys, caplog):
    caplog.set_level("INFO")
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        image = Image.new("RGBA", (80, 64), (0, 80 * index, 0, 255))
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(images / f"{index}.png")
        (images / f"{index}.txt").write_text("on a table", "utf-8")
    wishes = ["--steps", "auto", "--hold-out", "1", "--caption-prefix", "sksdog,", "--caption-dropout", "0.3"]
    wishes += ["--alpha-masks", "--min-snr-gamma", "5", "--noise-offset", "0.05", "--lr-schedule", "cosine"]
    wishes += ["--lr-warmup", "0.1", "--buckets"]
    command = train_command(base_folder, tmp_path / "bank", images, "dog", *wishes)
    assert main(command) == 0
    assert "The setting steps is 4, chosen by the number of images." in caplog.messages  # of three, one is held out
    assert "do not contain the token" not in caplog.text  # the prefix has it
    assert "of the held-out images" in capsys.readouterr().out
    concept = Bank.open(tmp_path / "bank").concept("dog")
    assert concept.settings["caption_prefix"] == "sksdog," and concept.requested["steps"] is None
    assert concept.metrics["images"] == 2 and len(concept.metrics["held_out_curve"]) >= 2

    entry = {"name": "dog", "images": str(images), "class_word": "dog", "resolution": 64, "rank": 2, "steps": "auto"}
    entry |= {"hold_out": 1, "caption_prefix": "sksdog,", "caption_dropout": 0.3, "alpha_masks": True}
    entry |= {"min_snr_gamma": 5, "noise_offset": 0.05, "lr_schedule": "cosine", "lr_warmup": 0.1, "buckets": True}
    stream = tmp_path / "stream.json"
    stream.write_text(json.dumps([entry]), "utf-8")
    assert main(["train", "--base", str(base_folder), "--bank", str(tmp_path / "bank"), "--stream", str(stream)]) == 0
    assert "0 of them new" in capsys.readouterr().out
    stream.write_text(json.dumps([{**entry, "noise_offset": 0.1}]), "utf-8")
    assert main(["train", "--base", str(base_folder), "--bank", str(tmp_path / "bank"), "--stream", str(stream)]) == 2


def test_holding_out_all_images_is_refused_before_the_base_is_loaded(tmp_path, pictures: Path, monkeypatch, capsys):
    monkeypatch.setattr("seqlora_core.cli.options.load_base", lambda *_: pytest.fail("the base was loaded"))
    assert main(train_command("mini", tmp_path / "bank", pictures, "dog", "--hold-out", "2")) == 2
    assert "There are 2 images, and hold_out 2 leaves none to train on" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["many", "0", "1.5"])
def test_steps_that_are_no_number_are_refused(tmp_path, pictures, capsys, value):
    assert main([*train_command("mini", tmp_path / "bank", pictures, "dog"), "--steps", value]) == 2
    assert "steps" in capsys.readouterr().err
