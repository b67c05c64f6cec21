"""Learned words in a bank: stock files, whose loss is named, and the text encoder that they belong to."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_bank import concept

from seqlora_core.bank import Bank, embedding_file, lora_file
from seqlora_core.bank.importing import import_lora, word_in
from seqlora_core.bank.inspection import inspect
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.cli.main import main
from seqlora_core.errors import UserError

VECTORS = torch.arange(12.0).view(2, 6) / 10


def worded(name: str, seed: int = 0, **more):
    return concept(name, seed, word=VECTORS + seed, text_encoder="e" * 32, **more)


def test_a_word_is_a_file_with_one_tensor_named_by_the_token(empty_bank):
    added = empty_bank.add(worded("a"))
    stored = load_file(empty_bank.folder / added.embedding)
    assert added.embedding == "embeddings/a.safetensors"
    assert stored.keys() == {"sks0"}
    assert torch.equal(stored["sks0"], VECTORS)
    assert added.subject == "sks0"


def test_a_word_follows_its_concept_through_rename_replace_and_remove(empty_bank):
    empty_bank.add(worded("a"))
    empty_bank.rename("a", "b")
    assert torch.equal(empty_bank.words()["sks0"], VECTORS)
    empty_bank.add(dataclasses.replace(worded("b"), word=VECTORS + 5), replace=True)
    assert torch.equal(Bank.open(empty_bank.folder).words()["sks0"], VECTORS + 5)
    empty_bank.remove("b")
    assert empty_bank.words() == {}
    assert not list((empty_bank.folder / "embeddings").iterdir())
    assert empty_bank.manifest.text_encoder == ""


@pytest.mark.parametrize("damage", ["missing", "changed", "link", "hostile"])
def test_a_damaged_word_is_named_and_the_others_are_there(empty_bank, damage, tmp_path):
    first = empty_bank.add(worded("a"))
    empty_bank.add(worded("b", 1))
    path = empty_bank.folder / first.embedding
    if damage == "changed":
        save_file({"sks0": VECTORS + 1}, path)
    elif damage == "hostile":
        path.write_bytes(b"\xff" * 100)
    else:
        path.unlink()
        if damage == "link":
            path.symlink_to(tmp_path / "elsewhere")
    problems = []
    assert list(empty_bank.words(problems=problems)) == ["sks1"]
    assert len(problems) == 1
    assert "concept 'a'" in problems[0]
    with pytest.raises(UserError, match="concept 'a'"):
        empty_bank.words()
    assert inspect(empty_bank).problems == problems


def test_a_word_of_another_text_encoder_is_not_stored(empty_bank):
    empty_bank.add(worded("a"))
    with pytest.raises(UserError, match="another text encoder"):
        empty_bank.add(dataclasses.replace(worded("b", 1), text_encoder="d" * 32))
    assert [one.name for one in empty_bank.refresh().concepts] == ["a"]


def test_a_bank_of_version_2_has_no_words_and_is_upgraded_by_a_change(empty_bank):
    empty_bank.add(concept("a"))
    path = empty_bank.folder / "bank.json"
    document = json.loads(path.read_text("utf-8"))
    document.pop("text_encoder")
    for name in ("embedding", "embedding_sha256"):
        document["concepts"][0].pop(name)
    path.write_text(json.dumps({**document, "version": 2}), "utf-8")
    bank = Bank.open(empty_bank.folder)
    assert (bank.concept("a").subject, bank.words()) == ("sks0 dog", {})
    bank.add(worded("b", 1))
    assert json.loads(path.read_text("utf-8"))["version"] == 3
    assert list(bank.words()) == ["sks1"]


@pytest.mark.parametrize("key", ["sksdog", "emb_params", "string_to_param.*"])
def test_a_textual_inversion_is_imported_without_a_lora(empty_bank, tmp_path, key):
    save_file({key: VECTORS}, tmp_path / "word.safetensors")
    added = import_lora(empty_bank, tmp_path / "word.safetensors", ConceptSpec("a", "sksdog", "dog"))
    assert torch.equal(empty_bank.words()["sksdog"], VECTORS)
    assert import_lora(empty_bank, tmp_path / "word.safetensors", ConceptSpec("a", "sksdog", "dog")) == added
    assert empty_bank.load()["a"] == {}


def test_a_bundle_is_imported_with_the_word_of_its_token(empty_bank, tmp_path):
    empty_bank.add(worded("a"))
    empty_bank.add(worded("b", 1))
    out = str(tmp_path / "b.safetensors")
    assert main(["compose", "--bank", str(empty_bank.folder), "--concept", "b", "--bundle", "--out", out]) == 0
    bundled = load_file(tmp_path / "b.safetensors")
    assert torch.equal(bundled["bundle_emb.sks1.string_to_param.*"], VECTORS + 1)
    other = Bank.open_or_create(tmp_path / "other", empty_bank.manifest.base, empty_bank.manifest.layers)
    import_lora(other, tmp_path / "b.safetensors", ConceptSpec("b", "SKS1", "dog"))
    assert torch.equal(other.words()["SKS1"], VECTORS + 1)
    assert other.load()["b"].keys() == empty_bank.load()["b"].keys()


@pytest.mark.parametrize(
    "tensors",
    [
        {"sks": torch.zeros(0, 6)},
        {"sks": torch.zeros(80, 6)},
        {"sks": torch.zeros(2, 2, 2)},
        {"a": VECTORS, "b": VECTORS + 1},
    ],
)
def test_what_is_no_word_is_refused_in_a_sentence(tmp_path, tensors):
    save_file(tensors, tmp_path / "word.safetensors")
    with pytest.raises(UserError, match="word"):
        embedding_file.read(tmp_path / "word.safetensors")


def test_a_key_of_a_thousand_letters_does_not_make_a_sentence_of_a_page(empty_bank, tmp_path):
    path = tmp_path / "word.safetensors"
    for tensors in ({"a" * 999: torch.zeros(80, 6)}, {"a" * 999: VECTORS, "b": VECTORS + 1}):
        save_file(tensors, path)
        with pytest.raises(UserError) as caught:
            embedding_file.deserialize(path.read_bytes(), "x")
        assert len(str(caught.value)) < 300
        with pytest.raises(UserError) as caught:
            lora_file.read(path)
        assert len(str(caught.value)) < 500
    save_file({"a" * 999: VECTORS}, path)
    assert word_in(path) == ""
