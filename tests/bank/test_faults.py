"""A bank on a disk that fails, after a crash, beside other processes, and with links and pipes in it."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from lora_files import kohya, random_adapters, write
from small_bank import BASE, LAYERS, concept
from training_runs import StopAfter, learn

from seqlora_core import files as storage
from seqlora_core.bank import Bank, ConceptSpec
from seqlora_core.bank import folder as bank_folder
from seqlora_core.bank.importing import describe_import, import_lora
from seqlora_core.bank.inspection import inspect
from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import LayerShape

CHANGES = {
    "add": lambda bank: bank.add(concept("b", 2)),
    "replace": lambda bank: bank.add(concept("a", 3), replace=True),
    "remove": lambda bank: bank.remove("a"),
    "rename": lambda bank: bank.rename("a", "z"),
}


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.fixture
def full_disk(monkeypatch):
    """Makes the k-th flush of a file's content fail."""

    def fail_at(k: int) -> None:
        calls, real = iter(range(1, 99)), os.fsync

        def fsync(descriptor: int) -> None:
            if next(calls) == k:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return fail_at


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_disk_is_one_sentence_and_leaves_no_copies(empty_bank, full_disk, monkeypatch, change):
    empty_bank.add(concept("a", 1))
    before = listing(empty_bank.folder)
    # On Linux every atomic write flushes its file, then the folder: the manifest is the last file.
    for k in (1,) if change == "remove" else (1, 3, 3):
        full_disk(k)
        with pytest.raises(UserError, match=r"Cannot (store|remove) '.*No space left on device: free some space"):
            CHANGES[change](Bank.open(empty_bank.folder))
        assert listing(empty_bank.folder) == before
        monkeypatch.undo()
    CHANGES[change](Bank.open(empty_bank.folder))
    assert not inspect(empty_bank).problems


def test_a_change_that_happened_is_not_reported_as_failed(empty_bank, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(storage, "_sync_folder", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    empty_bank.add(concept("a", 1))
    assert empty_bank.rename("a", "b").name == "b"
    assert list(Bank.open(empty_bank.folder).load()) == ["b"]


def test_a_folder_in_place_of_the_manifest_is_named(tmp_path):
    (tmp_path / "bank" / "bank.json").mkdir(parents=True)
    for opening in (Bank.open, lambda folder: Bank.open_or_create(folder, BASE, LAYERS)):
        with pytest.raises(UserError, match=r"bank\.json is a link, a folder, a pipe or a device"):
            opening(tmp_path / "bank")


def test_a_bank_with_other_layers_than_its_base_is_refused(empty_bank):
    empty_bank.add(concept("a", 1))
    narrower = dict.fromkeys(LAYERS, LayerShape(12, 8))
    with pytest.raises(UserError, match=r"bank\.json has other layers than its base model"):
        Bank.open_or_create(empty_bank.folder, BASE, narrower)


def test_a_folder_without_rights_is_named(empty_bank, monkeypatch):
    def deny(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", deny)
    with pytest.raises(UserError, match="Permission denied: check that you may write there"):
        empty_bank.add(concept("a", 1))


def test_the_next_change_deletes_what_a_crash_left_and_nothing_else(empty_bank, monkeypatch):
    folder, hour = empty_bank.folder, time.time() - 3600
    with monkeypatch.context() as patched:  # the process is gone before it can tidy up
        for name in ("delete_files", "unmark"):
            patched.setattr(bank_folder, name, lambda *_: None)
        patched.setattr(bank_folder, "write_manifest", crash)
        with pytest.raises(KeyboardInterrupt):
            empty_bank.add(concept("lost", 5))
    assert (folder / "concepts" / "lost.safetensors").is_file()
    (folder / "checkpoints").mkdir()
    abandoned = [folder / f"{place}.x.safetensors.0123456789abcdef.tmp" for place in ("", "concepts/", "checkpoints/")]
    for path in abandoned:
        path.touch()
        os.utime(path, (hour, hour))
    kept = [folder / "concepts" / ".y.safetensors.0123456789abcdef.tmp", folder / "notes.txt"]  # young; no business
    kept += [folder / "concepts" / "mine.safetensors", folder / "checkpoints" / "dog.safetensors"]
    for path in kept:
        path.touch()
    empty_bank.add(concept("a", 1))
    assert not any(path.exists() for path in (*abandoned, folder / "concepts" / "lost.safetensors"))
    assert not list(folder.rglob("*.pending"))
    assert all(path.exists() for path in kept)


def crash(*_) -> None:
    raise KeyboardInterrupt


def test_an_older_manifest_from_a_backup_costs_no_concept(empty_bank):
    empty_bank.add(concept("a", 1))
    manifest = empty_bank.folder / "bank.json"
    older = manifest.read_bytes()
    newer = empty_bank.add(concept("b", 2))
    manifest.write_bytes(older)
    Bank.open(empty_bank.folder).add(concept("c", 3))
    assert (empty_bank.folder / newer.file).is_file()


def test_a_concept_renamed_by_another_process_is_still_read(empty_bank):
    empty_bank.add(concept("a", 1))
    stale = Bank.open(empty_bank.folder)
    Bank.open(empty_bank.folder).rename("a", "b")
    assert list(stale.load(stale.concepts)) == ["a"]
    assert len(list(stale.read(stale.concepts))) == 1


def test_inspect_reads_the_manifest_under_the_lock(empty_bank, monkeypatch):
    """A process that renames between the two had its healthy bank called broken."""
    empty_bank.add(concept("a", 1))
    real, waiting = storage.locked, [lambda: Bank.open(empty_bank.folder).rename("a", "b")]

    def locked(path, *arguments, **more):
        if waiting:
            waiting.pop()()  # just before this process gets the lock
        return real(path, *arguments, **more)

    reader = Bank.open(empty_bank.folder)
    monkeypatch.setattr(storage, "locked", locked)
    assert inspect(reader).problems == []
    assert [c.name for c in reader.concepts] == ["b"]


def test_an_import_renamed_by_another_process_is_still_described(bank, tmp_path):
    imported = []
    for seed, name in enumerate(("first", "second")):
        file = write(tmp_path / f"{name}.safetensors", random_adapters(bank, seed=seed), kohya)
        imported.append(import_lora(bank, file, ConceptSpec(name, f"sks{name}", "thing")))
    Bank.open(bank.folder).rename("second", "other")
    assert "Overlap with first" in describe_import(bank, imported[1])


def test_a_bank_on_a_read_only_disk_is_read(empty_bank, monkeypatch):
    empty_bank.add(concept("a", 1))

    def refuse(path, *_, **__):
        raise storage.Unwritable("read-only")

    monkeypatch.setattr(storage, "locked", refuse)
    assert inspect(Bank.open(empty_bank.folder)).ok


@pytest.mark.parametrize("place", ["bank.json", "concepts", "concept's file", ".lock"])
def test_links_in_a_bank_are_not_followed(empty_bank, tmp_path, place):
    record = empty_bank.add(concept("a", 1))
    path = empty_bank.folder / (record.file if place == "concept's file" else place)
    target = path.rename(tmp_path / "elsewhere")
    content = target.read_bytes() if target.is_file() else None
    path.symlink_to(target, target_is_directory=target.is_dir())
    with pytest.raises(UserError, match=r"link|no regular file"):
        Bank.open(empty_bank.folder).load()
    with pytest.raises(UserError, match=r"link|no regular file"):
        Bank.open(empty_bank.folder).add(concept("b", 2)) if place != "concept's file" else empty_bank.load()
    assert content is None or target.read_bytes() == content


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("place", ["bank.json", "concept's file"])
def test_a_pipe_in_a_bank_is_not_waited_for(empty_bank, place):
    record = empty_bank.add(concept("a", 1))
    path = empty_bank.folder / (record.file if place == "concept's file" else place)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="a pipe or a device"):
        Bank.open(empty_bank.folder).load()


@pytest.mark.parametrize("damage", ["missing", "changed", "link"])
def test_one_bad_concept_does_not_block_the_others(denoiser, bank, tmp_path, damage):
    learn(denoiser, bank, "a", steps=1)
    learn(denoiser, bank, "b", steps=1)
    path = bank.folder / bank.refresh().concept("a").file
    content = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(content[:-4] + b"\0\0\xc0\x7f")  # ends in NaN
    elif damage == "link":
        path.symlink_to(tmp_path / "nothing")
    monitor = StopAfter(99)
    learn(denoiser, bank, "c", monitor=monitor, steps=1)
    assert any("concept 'a'" in text and "cannot be avoided" in text for text in monitor.messages)
    assert list(bank.occupied())  # of b and c
    result = inspect(bank)
    assert len(result.problems) == 1
    assert result.pairs["b", "c"] < 1e-5
    file = write(tmp_path / "x.safetensors", random_adapters(bank), kohya)
    assert import_lora(bank, file, ConceptSpec("d", "sksd", "thing"), project=True, monitor=monitor).name == "d"
    assert "Overlap with b" in describe_import(bank, bank.concept("d"))
    bank.remove("a")
    assert not inspect(bank).problems


def test_factors_that_are_not_finite_are_never_stored(empty_bank):
    new = concept("a", 1)
    layer, adapter = next(iter(new.adapters.items()))
    for value in (float("nan"), float("inf")):
        bad = {**new.adapters, layer: Adapter(adapter.up * value, adapter.down)}
        with pytest.raises(UserError, match=r"Concept 'a'.*not finite"):
            empty_bank.add(type(new)("a", "sksa", "dog", 2, "seqlora", bad))
    assert Bank.open(empty_bank.folder).concepts == ()


def test_an_export_into_a_bank_is_refused(empty_bank):
    record = empty_bank.add(concept("a", 1))
    for target in (empty_bank.folder / "x.safetensors", empty_bank.folder / record.file):
        with pytest.raises(UserError, match="lies in the bank"):
            empty_bank.export("a", target)
    assert json.loads((empty_bank.folder / "bank.json").read_text("utf-8"))["generation"] == 1
