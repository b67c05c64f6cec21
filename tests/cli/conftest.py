"""Banks that the command line has trained, and the check that it refuses a mistake as it should."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from training_runs import train_command

from seqlora_core.cli.main import main


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, colour in enumerate(("red", "green")):
        Image.new("RGB", (80, 64), colour).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def trained(base_folder, pictures, tmp_path_factory) -> Path:
    bank = tmp_path_factory.mktemp("cli") / "bank"
    assert main(train_command(base_folder, bank, pictures, "dog")) == 0
    return bank


@pytest.fixture
def bank(trained, tmp_path) -> Path:
    """A bank with one concept, dog."""
    return shutil.copytree(trained, tmp_path / "bank")


@pytest.fixture(scope="session")
def two_concepts(base_folder, pictures, tmp_path_factory) -> Path:
    """A bank with a dog and a cat, not to be changed."""
    bank = tmp_path_factory.mktemp("two") / "bank"
    for name in ("dog", "cat"):
        assert main(train_command(base_folder, bank, pictures, name, "--layers", "cross", "--method", "lora")) == 0
    return bank


@pytest.fixture
def document(capsys) -> Callable[[], dict]:
    """Reads the one JSON document on stdout."""
    return lambda: json.loads(capsys.readouterr().out)


@pytest.fixture
def refuse(bank, tmp_path, capsys) -> Callable[..., None]:
    """Checks that a mistake gets one line and status 2, and changes nothing.

    `{empty}` in an argument is an empty folder, `{broken}` one with a damaged image, `{bank}` the bank.
    """
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    empty.with_suffix(".safetensors").mkdir()
    (broken / "a.png").write_bytes(b"\x89PNG rubbish")

    def check(command: list[str], message: str) -> None:
        before = (bank / "bank.json").read_bytes()
        assert main([str(part).format(empty=empty, broken=broken, bank=bank) for part in command]) == 2
        captured = capsys.readouterr()
        last = captured.err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert (bank / "bank.json").read_bytes() == before
        assert not list(tmp_path.glob("x.*"))

    return check
