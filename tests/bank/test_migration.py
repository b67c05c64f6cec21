"""A bank of format version 1, made by version 0.1.0 of this program: read, used, and upgraded at its first change."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_metrics
from PIL import Image

from seqlora_core.bank import Bank
from seqlora_core.cli.main import main
from seqlora_core.errors import UserError

VERSION_1 = (
    Path(__file__).parent / "version_1"
)  # dog (seqlora), my cat (alternating), style (imported), bird unfinished


@pytest.fixture
def bank(tmp_path) -> Path:
    return Path(shutil.copytree(VERSION_1, tmp_path / "bank"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """The two images that dog and bird were trained on."""
    folder = tmp_path_factory.mktemp("photos") / "dog"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng([0, number]).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def document(bank: Path) -> dict:
    return json.loads((bank / "bank.json").read_text("utf-8"))


def test_settings_that_were_left_open_are_those_of_version_0_1_0(bank):
    dog, cat, _ = (concept.settings for concept in Bank.open(bank).concepts)
    names = ("train_on", "interference_penalty", "average", "ridge", "init", "coordinates", "lower_step")
    assert [dog[name] for name in names] == ["alternate", 0.01, 0.5, 0.0, "contrastive", "contrastive", "reuse"]
    assert [cat[name] for name in names] == ["bare", 0.0, 0.0, 0.001, "random", "plain", "repeat"]
    assert (dog["lr_coefficients"], dog["lr_basis"], dog["resolution"]) == (1e-3, 1e-3, 64)
    assert None not in dog.values() and None not in cat.values()


def test_what_the_user_asked_for_keeps_what_was_left_open(bank):
    dog, cat, style = Bank.open(bank).concepts
    assert (dog.requested["train_on"], cat.requested["train_on"]) == (None, "bare")
    assert (style.settings, style.requested) == ({}, {})


def test_where_concepts_come_from_is_no_metric_any_more(bank):
    dog, _, style = Bank.open(bank).concepts
    old = {concept["name"]: concept["metrics"] for concept in document(VERSION_1)["concepts"]}
    assert dog.provenance.data == old["dog"]["data"]
    assert (style.provenance.source, style.provenance.projected) == ("style.safetensors", False)
    assert style.provenance.sha256 == old["style"]["sha256"]
    assert style.metrics["remaining"] == old["style"]["kept"]
    assert not {"data", "source", "sha256", "projected"} & (dog.metrics.keys() | style.metrics.keys())


def test_reading_leaves_the_file_alone_and_the_first_change_upgrades_it(bank):
    before = {path.name: path.read_bytes() for path in (bank / "concepts").iterdir()}
    Bank.open(bank).load()
    assert document(bank)["version"] == 1
    Bank.open(bank).remove("style")
    after = document(bank)
    assert (after["version"], [concept["name"] for concept in after["concepts"]]) == (3, ["dog", "my cat"])
    assert [concept["id"] for concept in after["concepts"]] == [c["id"] for c in document(VERSION_1)["concepts"][:2]]
    assert all(
        (bank / "concepts" / name).read_bytes() == before[name] for name in ("dog.safetensors", "my-cat.safetensors")
    )
    assert Bank.open(bank).concept("dog").settings["train_on"] == "alternate"


def test_a_bank_of_a_later_version_asks_for_an_update(bank):
    (bank / "bank.json").write_text(json.dumps({**document(bank), "version": 4}), "utf-8")
    with pytest.raises(UserError, match="update"):
        Bank.open(bank)


def test_every_command_takes_it(bank, base_folder, photos, tmp_path, capsys):
    def run(*arguments) -> str:
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    base, of_bank, one = ["--base", base_folder], ["--bank", bank], ["--concept", "dog"]
    small = ["--steps", 2, "--size", 64]
    assert {"dog", "my cat", "style"} == {c["name"] for c in json.loads(run("list", *of_bank, "--json"))["concepts"]}
    assert json.loads(run("inspect", *of_bank, "--json"))["problems"] == []
    run("inspect", *base, *of_bank, "--sampling-steps", 1)
    run("compose", *of_bank, *one, "--out", tmp_path / "dog.safetensors")
    run("generate", *base, *of_bank, *one, "--prompt", "sksdog dog", "--out", tmp_path / "dog.png", *small)
    for name in ("dog", "my cat", "style"):
        shutil.copytree(photos, tmp_path / "references" / name)
    metric = f"dino={tiny_metrics.save_dino(tmp_path / 'dino')}"
    references = ["--references", tmp_path / "references", "--metric", metric, "--out", tmp_path / "evaluation"]
    run("evaluate", *base, *of_bank, *references, "--images", 1, *small)
    train = ["train", *base, *of_bank, "--images", photos, "--resolution", 64, "--rank", 2]
    run(*train, "--name", "bird", "--class-word", "bird", "--steps", 6, "--resume")
    run(*train, "--name", "dog", "--class-word", "dog", "--steps", 1, "--on-existing", "replace")
    run("import", *of_bank, "--file", tmp_path / "dog.safetensors", "--name", "copy", "--class-word", "dog")
    run("rename", *of_bank, "--name", "my cat", "--to", "cat")
    run("remove", *of_bank, "--name", "style")
    assert [concept.name for concept in Bank.open(bank).concepts] == ["cat", "bird", "dog", "copy"]


def test_an_unfinished_run_of_version_1_goes_on(bank, base_folder, photos, caplog):
    train = ["train", "--base", base_folder, "--bank", bank, "--images", photos, "--resolution", 64, "--rank", 2]
    command = [*train, "--name", "bird", "--class-word", "bird", "--steps", 6, "--resume"]
    with caplog.at_level("INFO"):
        assert main([str(part) for part in command]) == 0
    concept = Bank.open(bank).concept("bird")
    assert concept.metrics["steps"] == 6
    assert "Resuming at step 3 of 6" in caplog.text


def test_another_setting_than_version_1_s_default_does_not_resume_it(bank, base_folder, photos, capsys):
    train = ["train", "--base", base_folder, "--bank", bank, "--images", photos, "--resolution", 64, "--rank", 2]
    command = [*train, "--name", "bird", "--class-word", "bird", "--steps", 6, "--resume", "--train-on", "bare"]
    assert main([str(part) for part in command]) == 2
    assert "its train_on was 'alternate' and is now 'bare'" in capsys.readouterr().err
