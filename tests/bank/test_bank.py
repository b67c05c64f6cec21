"""The bank on disk: stock files, crashes, several processes, names, and files that were tampered with."""

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_bank import BASE, LAYERS, concept

from seqlora_core import files as storage
from seqlora_core.bank import Bank, BaseIdentity, NewConcept, names
from seqlora_core.bank.inspection import inspect
from seqlora_core.errors import UserError
from seqlora_core.model.adapters import Adapter
from seqlora_core.model.sd15 import LayerShape


def test_what_was_added_is_read_back_bit_for_bit_in_order(empty_bank):
    added = [concept(f"c{i}", i) for i in range(3)]
    for new in added:
        empty_bank.add(new)
    loaded = Bank.open(empty_bank.folder).load()
    assert list(loaded) == ["c0", "c1", "c2"]
    for new in added:
        for layer, adapter in new.adapters.items():
            assert torch.equal(loaded[new.name][layer].up, adapter.up)
            assert torch.equal(loaded[new.name][layer].down, adapter.down)


def test_factors_that_are_views_of_one_tensor_are_stored(empty_bank):
    shared = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q
    adapters = {layer: Adapter.from_factors(torch.ones(8, 2), shared[:, :2]) for layer in LAYERS}
    empty_bank.add(NewConcept("a", "sksa", "dog", 2, "orthogonal", adapters))
    assert all(torch.equal(adapter.B, shared[:, :2]) for adapter in empty_bank.load()["a"].values())


def test_a_bank_refuses_another_base_and_names_both(empty_bank):
    empty_bank.add(concept("a"))
    with pytest.raises(UserError, match=r"tiny \(ffffffff\).*other \(00000000\)"):
        Bank.open_or_create(empty_bank.folder, BaseIdentity("other", "0" * 32), LAYERS)


def test_a_bank_without_concepts_takes_another_base_and_its_layers(empty_bank):
    """As a first training that fails or is cancelled leaves it."""
    other, narrower = BaseIdentity("other", "0" * 32), dict.fromkeys(LAYERS, LayerShape(12, 8))
    taken = Bank.open_or_create(empty_bank.folder, other, narrower)
    assert taken.manifest == Bank.open(empty_bank.folder).manifest
    assert (taken.manifest.base, taken.manifest.layers) == (other, narrower)
    assert taken.manifest.generation > empty_bank.manifest.generation
    with pytest.raises(UserError, match=r"belongs to the base model other.*not to tiny"):
        empty_bank.add(concept("a"))  # whoever opened it for the first base
    assert not taken.refresh().concepts


def test_a_bank_in_which_a_training_runs_stays_with_its_base_though_it_has_no_concept_yet(empty_bank):
    other = BaseIdentity("other", "0" * 32)
    with empty_bank.training(lambda: None), pytest.raises(UserError, match="belongs to the base model tiny"):
        Bank.open_or_create(empty_bank.folder, other, LAYERS)
    assert empty_bank.refresh().manifest.base == BASE


def test_removing_frees_directions_and_deletes_the_files(empty_bank):
    empty_bank.add(concept("a", 1, thumbnail=Image.new("RGB", (600, 300), "red")))
    folder = empty_bank.folder
    assert Image.open(folder / "thumbnails" / "a.webp").size == (256, 128)
    assert {v["free"] for v in inspect(empty_bank).layers.values()} == {14}
    empty_bank.remove("A")
    assert {v["free"] for v in inspect(empty_bank).layers.values()} == {16}
    assert not list((folder / "concepts").iterdir())
    assert not list((folder / "thumbnails").iterdir())


def test_renaming_keeps_tensors_thumbnail_token_and_order(empty_bank):
    first = empty_bank.add(concept("a", 1, thumbnail=Image.new("RGB", (9, 9))))
    empty_bank.add(concept("b", 2, bank=empty_bank))
    before = empty_bank.load()["a"]
    renamed = empty_bank.rename("a", "Émile: no".replace(":", ""))
    assert [c.name for c in Bank.open(empty_bank.folder).concepts] == ["Émile no", "b"]
    assert (renamed.token, renamed.id) == (first.token, first.id)
    after = Bank.open(empty_bank.folder).load()["Émile no"]
    assert all(torch.equal(before[layer].B, after[layer].B) for layer in LAYERS)
    assert (empty_bank.folder / renamed.thumbnail).is_file()
    with pytest.raises(UserError, match="already has"):
        empty_bank.rename("b", "ÉMILE NO")


@pytest.mark.parametrize("operation", ["add", "replace", "remove", "rename"])
def test_a_crash_at_any_write_leaves_a_whole_bank(empty_bank, monkeypatch, operation):
    """Fail at the 1st, 2nd, ... file system change of an operation; the bank is as before, or as after."""
    empty_bank.add(concept("a", 1))
    act = {
        "add": lambda bank: bank.add(concept("b", 2, bank=empty_bank)),
        "replace": lambda bank: bank.add(concept("a", 3), replace=True),
        "remove": lambda bank: bank.remove("a"),
        "rename": lambda bank: bank.rename("a", "z"),
    }[operation]
    real_replace, real_unlink = os.replace, Path.unlink

    class Crash(BaseException):
        pass

    for moment in range(12):
        before = Bank.open(empty_bank.folder).load()
        calls = iter(range(99))

        def counting(real, calls=calls, moment=moment):
            def call(*args, **kwargs):
                if next(calls) == moment:
                    raise Crash
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counting(real_replace))
            patch.setattr(Path, "unlink", counting(real_unlink))
            try:
                act(Bank.open(empty_bank.folder))
                finished = True
            except Crash:
                finished = False
        bank = Bank.open(empty_bank.folder)
        result = inspect(bank)
        assert not result.problems
        if finished:
            assert moment > 0
            return
        for name, adapters in bank.load().items():
            if name in before and operation != "replace":
                assert all(torch.equal(adapters[layer].A, before[name][layer].A) for layer in LAYERS)
        if [c.name for c in bank.concepts] != list(before):
            return  # the change was published before the crash
    raise AssertionError("the operation never finished")


def _add_some(folder: str, worker: int) -> None:
    for i in range(3):
        Bank.open(folder).add(concept(f"w{worker}-{i}", 10 * worker + i))


def test_several_processes_add_at_once_and_nothing_is_lost(empty_bank):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_some, args=(str(empty_bank.folder), worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {worker.exitcode for worker in workers} == {0}
    assert len(Bank.open(empty_bank.folder).load()) == 6


def test_a_damaged_or_missing_file_is_named_and_the_others_still_load(empty_bank):
    for i, name in enumerate("abc"):
        empty_bank.add(concept(name, i, bank=empty_bank))
    path = empty_bank.folder / "concepts" / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (empty_bank.folder / "concepts" / "b.safetensors").unlink()
    result = inspect(empty_bank)
    assert not result.ok
    assert len(result.problems) == 2
    assert "'a' is damaged" in result.problems[0]
    with pytest.raises(UserError, match="'b' cannot be read"):
        empty_bank.load([empty_bank.concept("b")])
    assert list(empty_bank.load([empty_bank.concept("c")])) == ["c"]


def test_a_file_of_another_rank_than_its_record_is_refused(empty_bank):
    empty_bank.add(concept("a", rank=2))
    record = dataclasses.replace(empty_bank.concept("a"), rank=1)
    with pytest.raises(UserError, match="does not fit"):
        empty_bank.load([record])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["concepts"][0].update(file="../../x.safetensors"), "outside"),
        (lambda m: m["concepts"][0].update(file="concepts/..\\x"), "outside"),
        (lambda m: m["concepts"][0].update(thumbnail="/etc/passwd"), "outside"),
        (lambda m: m.update(version=99), "newer"),
        (lambda m: m.update(format="other"), "not the manifest"),
        (lambda m: m.pop("base"), "damaged"),
    ],
)
def test_a_manifest_from_elsewhere_is_checked(empty_bank, change, message):
    empty_bank.add(concept("a"))
    path = empty_bank.folder / "bank.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(UserError, match=message):
        Bank.open(empty_bank.folder)


def test_concepts_that_were_not_trained_orthogonally_are_not_called_ok(empty_bank):
    empty_bank.add(concept("a", 1))
    empty_bank.add(concept("b", 2))
    result = inspect(empty_bank)
    assert not result.ok
    assert result.pairs["a", "b"] == result.max_overlap > 0.01


@pytest.mark.parametrize("bad", ["", "  ", "a/b", "a\\b", "a:b", "a,b", "a\nb", "..", "x" * 101, 'say "hi"', "what?"])
def test_names_that_are_paths_or_lists_are_refused(bad):
    with pytest.raises(UserError):
        names.check_name(bad)


@pytest.mark.parametrize("bad", ["con", "AUX", "nul.pets", "com1", "LPT9 .x", "com²", "pets.", "a/b"])
def test_names_that_windows_does_not_take_are_refused_for_files_and_folders(bad):
    with pytest.raises(UserError, match="The bank's name"):
        names.check_file_name(bad, "bank's name")


@pytest.mark.parametrize("good", [" console ", "com0", "my.pets", "aux lamp"])
def test_names_that_only_resemble_those_are_taken(good):
    assert names.check_file_name(good, "bank's name") == good.strip()


@given(st.text(max_size=120), st.lists(st.sampled_from(["con", "concept", "a", "a-2"])))
def test_slugs_are_file_names_on_every_system(name, taken):
    slug = names.slug(name, taken)
    assert slug not in taken
    assert slug.isascii()
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 0 < len(slug) <= 80
    assert slug.split(".")[0] not in {"con", "nul", "aux", "prn", "com1", "lpt9"}


def test_an_exported_file_is_the_concepts_and_overwrites_nothing(empty_bank, tmp_path):
    record = empty_bank.add(concept("a", 1))
    target = tmp_path / "loras" / "a.safetensors"
    assert empty_bank.export("A", target).read_bytes() == (empty_bank.folder / record.file).read_bytes()
    written = target.stat().st_mtime_ns
    empty_bank.export("a", target)  # the same again changes nothing
    assert target.stat().st_mtime_ns == written
    target.write_bytes(b"something else")
    with pytest.raises(UserError, match="another file"):
        empty_bank.export("a", target)
    assert target.read_bytes() == b"something else"


def test_two_names_with_one_slug_get_two_files(empty_bank):
    empty_bank.add(concept("my dog", 1))
    empty_bank.add(concept("my-dog", 2, bank=empty_bank))
    assert len(Bank.open(empty_bank.folder).load()) == 2
    assert len(list((empty_bank.folder / "concepts").iterdir())) == 2


def test_an_atomic_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    target = tmp_path / "f"
    storage.write_atomically(target, b"old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_drive_that_is_not_there_is_named(tmp_path, monkeypatch):
    """On Windows not even the root of such a path exists."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(storage.Unwritable, match=r"there is no drive /"):
        storage.check_writable(tmp_path / "out" / "x.png")


def test_names_without_latin_letters_share_neither_a_checkpoint_nor_a_token(empty_bank):
    paths = {empty_bank.checkpoint_path(name) for name in ("猫", "犬", "My dog", "my-dog")}
    assert len(paths) == 4
    assert empty_bank.checkpoint_path(" my DOG ") == empty_bank.checkpoint_path("My dog")  # as for the bank
    assert names.default_token("Café 2") == "skscafe2"
    with pytest.raises(UserError, match="give one in Latin letters"):
        names.default_token("猫")


def test_whoever_may_read_the_folder_may_read_the_bank(empty_bank):
    added = empty_bank.add(concept("a", 1))
    (empty_bank.folder / "ordinary").touch()
    usual = (empty_bank.folder / "ordinary").stat().st_mode
    assert all((empty_bank.folder / file).stat().st_mode == usual for file in ("bank.json", added.file))


def test_a_concept_is_not_renamed_while_a_training_may_be_about_to_replace_it(empty_bank):
    """It would look for it under its old name, and leave both, one on top of the other."""
    empty_bank.add(concept("dog"))
    with empty_bank.training(lambda: None), pytest.raises(UserError, match="A training run is using this bank"):
        Bank.open(empty_bank.folder).rename("dog", "old dog")
    assert Bank.open(empty_bank.folder).rename("dog", "old dog").name == "old dog"


def test_a_concept_whose_thumbnail_is_gone_can_be_renamed(empty_bank):
    added = empty_bank.add(concept("dog", thumbnail=Image.new("RGB", (9, 9))))
    (empty_bank.folder / added.thumbnail).unlink()
    assert empty_bank.rename("dog", "cat").thumbnail == ""


def test_a_file_that_could_not_be_deleted_is_not_written_again(empty_bank, monkeypatch):
    """On Windows, where somebody has it open."""
    first = empty_bank.add(concept("dog"))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
        empty_bank.remove("dog")
    assert (empty_bank.folder / first.file).is_file()
    assert empty_bank.add(concept("dog")).file != first.file
