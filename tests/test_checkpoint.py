"""The file of an unfinished training."""

import torch

from seqlora_core.checkpoint import Checkpoint
from seqlora_core.config import TrainingConfig


def test_a_checkpoint_that_was_read_does_not_need_its_file_any_more(tmp_path):
    """Windows neither replaces nor deletes a file that a tensor is a part of, and resuming does both to it."""
    path, tensors = tmp_path / "dog.safetensors", {"A.layer": torch.arange(100_000.0)}
    Checkpoint(3, TrainingConfig(), {"data": "x"}, [1.0], 2.0, 6, tensors).save(path)
    read = Checkpoint.load(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(read.tensors["A.layer"], tensors["A.layer"])
    assert (read.step, read.losses, read.identity) == (3, [1.0], {"data": "x"})
