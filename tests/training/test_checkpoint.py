"""The file of an unfinished training."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file
from training_runs import StopAfter, equal, factors, learn, random_concept, resolved

from seqlora_core import files as storage
from seqlora_core import subspace
from seqlora_core.bank import Bank
from seqlora_core.errors import Cancelled, UserError
from seqlora_core.training.checkpoint import Checkpoint
from seqlora_core.training.trainer import RunOptions


def test_a_checkpoint_that_was_read_does_not_need_its_file_any_more(tmp_path):
    """Windows neither replaces nor deletes a file that a tensor is a part of, and resuming does both to it."""
    path, tensors = tmp_path / "dog.safetensors", {"A.layer": torch.arange(100_000.0)}
    Checkpoint(3, resolved(), {"data": "x"}, [1.0], 2.0, 6, 512.0, tensors).save(path)
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
    learn(denoiser, bank, "a", random_concept(4), stop, options=RunOptions(resume=True), steps=3)
    assert stop.done == 0
    assert any("Resuming at step 3 of 3" in message for message in stop.messages)
    assert bank.refresh().concept("a").metrics["steps"] == 3


def test_a_checkpoint_that_tells_data_apart_by_its_tensors_as_the_version_before_did_resumes(denoiser, bank):
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", random_concept(4), StopAfter(2))
    for seed in (5, 4):
        data = dataclasses.replace(random_concept(seed), source="hash of the pictures")
        with pytest.raises(UserError, match="its data") if seed == 5 else nullcontext():
            learn(denoiser, bank, "a", data, options=RunOptions(resume=True))
    assert bank.refresh().concept("a").provenance.data == "hash of the pictures"


@pytest.fixture
def locked_checkpoints(monkeypatch) -> list:
    """Checkpoints that a virus scanner does not let anybody write or delete; the paths that were to be deleted."""
    real, asked = Path.unlink, []

    def fail(*_):
        raise PermissionError(13, "used by another process")

    def unlink(path, missing_ok=False):
        if path.parent.name == "checkpoints":
            asked.append(path)
            fail()
        real(path, missing_ok)

    monkeypatch.setattr(Checkpoint, "save", fail)
    monkeypatch.setattr(Path, "unlink", unlink)
    return asked


def test_a_training_whose_checkpoints_cannot_be_written_or_deleted_goes_on_and_tells(
    denoiser, bank, locked_checkpoints
):
    monitor, data = StopAfter(99), random_concept(4)
    learn(denoiser, bank, "a", data, monitor, RunOptions(checkpoint_seconds=1e-9), steps=3)
    assert bank.refresh().concept("a").metrics["steps"] == 3
    assert any("cannot be written (used by another process)" in message for message in monitor.messages)
    assert locked_checkpoints


@pytest.mark.parametrize("error", [None, RuntimeError("out of memory")])
def test_a_stop_without_a_checkpoint_says_so_and_is_still_that_stop(denoiser, bank, locked_checkpoints, error):
    stop = StopAfter(2, error)
    with pytest.raises(RuntimeError if error else Cancelled):
        learn(denoiser, bank, "a", random_concept(4), stop)
    assert "cannot be written" in stop.messages[-1]


def test_a_concept_that_cannot_be_written_is_told_where_its_checkpoint_cannot_either(
    denoiser, bank, locked_checkpoints, monkeypatch
):
    def disk_full(*_):
        raise OSError(28, "no space left")

    monkeypatch.setattr(storage, "write_atomically", disk_full)
    with pytest.raises(UserError, match=r"Cannot store 'a' in the bank .*no space left: free some space"):
        learn(denoiser, bank, "a", random_concept(4), steps=2)
    assert bank.refresh().concepts == ()


@pytest.fixture
def stopped(denoiser, bank) -> Path:
    """The checkpoint of a run that was stopped at step 2 of 4."""
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", random_concept(4), StopAfter(2))
    return bank.checkpoint_path("a")


def without_one(record, tensors):
    del tensors[next(key for key in tensors if key.startswith("A."))]


def of_another_shape(record, tensors):
    key = next(key for key in tensors if key.startswith("lower.0.exp_avg"))
    tensors[key] = torch.zeros(3, 3)


def not_finite(record, tensors):
    tensors[min(tensors)].view(-1)[0] = float("nan")


DAMAGES = {
    "a tensor missing": without_one,
    "a tensor of another shape": of_another_shape,
    "a tensor that is not finite": not_finite,
    "a step that is a text": lambda record, tensors: record.update(step="2"),
    "a step beyond the end": lambda record, tensors: record.update(step=99),
    "losses that are texts": lambda record, tensors: record.update(losses=["a", "b"]),
    "an identity that is a list": lambda record, tensors: record.update(identity=[]),
    "settings that are a text": lambda record, tensors: record.update(config="x"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "half of the file", "nothing", "a link"])
def test_resuming_from_a_damaged_checkpoint_starts_again_and_says_so(denoiser, bank, stopped, tmp_path, damage):
    content = stopped.read_bytes()
    if damage in DAMAGES:
        with safe_open(stopped, "pt") as file:
            record, tensors = json.loads(file.metadata()["seqlora.checkpoint"]), load(content)
        DAMAGES[damage](record, tensors)
        stopped.write_bytes(save(tensors, {"seqlora.checkpoint": json.dumps(record)}))
    elif damage == "a link":
        stopped.symlink_to(stopped.rename(tmp_path / "elsewhere"))
    else:
        stopped.write_bytes(content[: len(content) // 2] if damage == "half of the file" else b"")
    monitor = StopAfter(1)
    with pytest.raises(Cancelled):
        learn(denoiser, bank, "a", random_concept(4), monitor, RunOptions(resume=True))
    assert monitor.done == 1  # not the third step
    assert any("is damaged, so the training run starts again at step 0" in text for text in monitor.messages)


class TestContrastiveCoordinates:
    """A stopped training in coordinates that are made anew when it resumes."""

    @pytest.fixture
    def resumed(self, denoiser, bank):
        """change of the checkpoint's file -> what a stopped training ends with, and what it says on the way."""
        data = dataclasses.replace(
            random_concept(4), protected=torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
        )
        path = bank.checkpoint_path("a")
        with pytest.raises(Cancelled):
            learn(denoiser, bank, "a", data, StopAfter(3), steps=6)
        stopped = path.read_bytes()

        def resume(change=lambda record, tensors: None) -> tuple[dict, str]:
            path.write_bytes(stopped)
            with safe_open(path, "pt") as file:
                record, tensors = json.loads(file.metadata()["seqlora.checkpoint"]), load(stopped)
            change(record, tensors)
            path.write_bytes(save(tensors, {"seqlora.checkpoint": json.dumps(record)}))
            monitor = StopAfter(99)
            learn(denoiser, bank, "a", data, monitor, RunOptions(resume=True), steps=6)
            adapters = factors(bank, "a")
            bank.remove("a")
            return adapters, " ".join(monitor.messages)

        return resume

    def test_directions_that_turned_around_meanwhile_matter_no_more_than_a_new_optimizer(self, resumed, monkeypatch):
        def without_memory(record, tensors):
            for name in [name for name in tensors if name.startswith("upper.")]:
                del tensors[name]

        remembered, told = resumed()
        assert "was reset" not in told
        expected, _ = resumed(without_memory)
        real = subspace.contrastive_directions
        monkeypatch.setattr(subspace, "contrastive_directions", lambda *given: -real(*given))
        turned, told = resumed()
        assert "was reset" in told
        assert equal(turned, expected)
        assert not equal(turned, remembered)

    def test_a_checkpoint_of_the_version_before_resumes_as_it_did(self, resumed):
        unchanged, _ = resumed()
        old, told = resumed(lambda record, tensors: record.pop("directions"))
        assert equal(old, unchanged)
        assert "was reset" not in told
