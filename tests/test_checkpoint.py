"""The file of an unfinished training."""

import json

import pytest
import torch
from conftest import random_concept
from safetensors.torch import save_file
from test_trainer import StopAfter, learn

from seqlora_core.bank import Bank
from seqlora_core.checkpoint import Checkpoint
from seqlora_core.config import TrainingConfig
from seqlora_core.errors import UserError
from seqlora_core.trainer import Options


def test_a_checkpoint_that_was_read_does_not_need_its_file_any_more(tmp_path):
    """Windows neither replaces nor deletes a file that a tensor is a part of, and resuming does both to it."""
    path, tensors = tmp_path / "dog.safetensors", {"A.layer": torch.arange(100_000.0)}
    Checkpoint(3, TrainingConfig(), {"data": "x"}, [1.0], 2.0, 6, 512.0, tensors).save(path)
    read = Checkpoint.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(read.tensors["A.layer"], tensors["A.layer"])
    assert (read.step, read.losses, read.identity, read.loss_scale) == (3, [1.0], {"data": "x"}, 512.0)


@pytest.mark.parametrize("record", [{"step": 3}, {"step": 3, "config": {}, "identity": {}, "of another": "version"}])
def test_a_checkpoint_with_other_fields_is_no_readable_one(tmp_path, record):
    save_file({"A": torch.ones(1)}, tmp_path / "dog.safetensors", {"seqlora.checkpoint": json.dumps(record)})
    with pytest.raises(UserError, match="not a readable checkpoint"):
        Checkpoint.load(tmp_path / "dog.safetensors")


def test_a_training_that_cannot_be_stored_is_resumed_at_its_end(denoiser, bank, monkeypatch):
    def disk_full(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Bank, "add", disk_full)
        with pytest.raises(OSError, match="no space"):
            learn(denoiser, bank, "a", random_concept(4), steps=3)
    stop = StopAfter(4)
    learn(denoiser, bank, "a", random_concept(4), stop, options=Options(resume=True), steps=3)
    assert stop.done == 0
    assert any("Resuming at step 3 of 3" in message for message in stop.messages)
    assert bank.refresh().concept("a").metrics["steps"] == 3
