"""A `bank.json` that is damaged or hostile: one sentence with the file's name, in bounded memory."""

import json

import pytest
from small_bank import concept

from seqlora_core.bank import Bank
from seqlora_core.errors import UserError


def second(document: dict, **changes) -> None:
    """Append a copy of the first concept."""
    own = {"name": "b", "id": "2", "file": "concepts/b.safetensors"}
    document["concepts"].append({**document["concepts"][0], **own, **changes})


CHANGES = {
    "two concepts with one name": lambda d: second(d, name="A "),
    "two concepts with one file": lambda d: second(d, file="concepts/A.safetensors"),
    "two concepts with one id": lambda d: second(d, id=d["concepts"][0]["id"]),
    "a width of 2^40": lambda d: next(iter(d["layers"].values())).update(width=2**40),
    "a width that is true": lambda d: next(iter(d["layers"].values())).update(width=True),
    "a width of 2.5": lambda d: next(iter(d["layers"].values())).update(width=2.5),
    "a rank of 10^12": lambda d: d["concepts"][0].update(rank=10**12),
    "a rank that is a text": lambda d: d["concepts"][0].update(rank="4"),
    "a token that is a number": lambda d: d["concepts"][0].update(token=5),
    "a name with a line break": lambda d: d["concepts"][0].update(name="a\nb"),
    "metrics that are a list": lambda d: d["concepts"][0].update(metrics=[1]),
    "a loss that is a text": lambda d: d["concepts"][0].update(metrics={"final_loss": "low"}),
    "a loss curve of texts": lambda d: d["concepts"][0].update(metrics={"loss_curve": ["a"]}),
    "a number of 2^70 in a curve": lambda d: d["concepts"][0].update(metrics={"loss_curve": [1, -(2**70)]}),
    "metrics nested deeply": lambda d: d["concepts"][0].update(metrics={"new": json.loads("[" * 9 + "1" + "]" * 9)}),
    "settings nested deeply": lambda d: d["concepts"][0].update(settings=json.loads("[" * 300 + "]" * 300)),
    "skipped layers that are a text": lambda d: d["concepts"][0].update(layers_skipped="all"),
    "half a character": lambda d: d["concepts"][0].update(method="\ud800"),
    "a file in the folder of thumbnails": lambda d: d["concepts"][0].update(file="thumbnails/a.webp"),
    "a file named like a device": lambda d: d["concepts"][0].update(file="concepts/con.safetensors"),
    "a generation that is a text": lambda d: d.update(generation="1"),
    "a version that is a text": lambda d: d.update(version="2"),
    "concepts that are an object": lambda d: d.update(concepts={}),
    "layers that are a list": lambda d: d.update(layers=[]),
    "a base that is a text": lambda d: d.update(base="x"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_with_impossible_values_is_one_sentence(empty_bank, change):
    empty_bank.add(concept("a"))
    path = empty_bank.folder / "bank.json"
    document = json.loads(path.read_text("utf-8"))
    CHANGES[change](document)
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(UserError, match=r"bank\.json is damaged") as caught:
        Bank.open(empty_bank.folder)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "[" * 100_000, '{"a":' * 100_000, "\xff", "9" * 5000])
def test_a_manifest_that_is_something_else_is_one_sentence(empty_bank, text):
    path = empty_bank.folder / "bank.json"
    path.write_text(text, "latin-1")
    with pytest.raises(UserError, match=r"bank\.json"):
        Bank.open(empty_bank.folder)


def test_a_huge_manifest_is_neither_read_nor_written(empty_bank, monkeypatch):
    with open(empty_bank.folder / "bank.json", "r+b") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UserError, match=r"bank\.json has more than"):
        Bank.open(empty_bank.folder)


def test_a_bank_never_grows_beyond_what_can_be_read(empty_bank, monkeypatch):
    empty_bank.add(concept("a", 1))
    size = (empty_bank.folder / "bank.json").stat().st_size
    monkeypatch.setattr("seqlora_core.bank.folder.MAX_BYTES", size + 100)
    with pytest.raises(UserError, match="start another bank"):
        empty_bank.add(concept("b", 2))
    assert list(Bank.open(empty_bank.folder).load()) == ["a"]
    assert len(list((empty_bank.folder / "concepts").iterdir())) == 1


def test_metrics_that_later_versions_add_are_kept(empty_bank):
    empty_bank.add(concept("a", metrics={"new": [1.5, {"x": None}], "loss_curve": [1, 2.0]}))
    assert Bank.open(empty_bank.folder).concept("a").metrics["new"] == [1.5, {"x": None}]
