"""What holds for every command: help, unknown commands, missing packages and too little memory."""

import argparse
import sys

import pytest
import torch
from training_runs import train_command

from seqlora_core.cli.main import main, make_parser


@pytest.mark.parametrize(("command", "message"), [([], "required"), (["fly"], "invalid choice")])
def test_a_command_that_does_not_exist_is_refused(refuse, command, message):
    refuse(command, message)


def test_every_option_of_every_command_is_explained():
    (commands,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    options = {
        (name, action.option_strings[-1]): action.help
        for name, command in commands.choices.items()
        for action in command._actions
    }
    assert [option for option, text in options.items() if not text] == []


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name in [name for name in sys.modules if name.startswith("diffusers.")]:
        monkeypatch.delitem(sys.modules, name)
    command = ["generate", "--base", "mini", "--prompt", "x", "--out", str(tmp_path / "x.png")]
    assert main(command) == 2
    assert "pip install" in capsys.readouterr().err


def generate_command(base_folder, folder) -> list[str]:
    return ["generate", "--base", str(base_folder), "--prompt", "x", "--out", str(folder / "x.png")]


@pytest.mark.parametrize(
    ("command", "remedies"),
    [
        ("train", ["--gradient-checkpointing", "--batch-size", "--resolution", "--dtype", "--device cpu"]),
        ("generate", ["--size", "--dtype", "--device cpu"]),
    ],
)
def test_too_little_memory_gets_one_line_with_what_takes_less(
    base_folder, pictures, tmp_path, monkeypatch, capsys, command, remedies
):
    def out_of_memory(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("seqlora_core.cli.options.load_base", out_of_memory)
    train = train_command(base_folder, tmp_path / "bank", pictures, "dog")
    generate = generate_command(base_folder, tmp_path)
    assert main({"train": train, "generate": generate}[command]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: The graphics card has too little memory")
    assert len(line.splitlines()) == 1
    assert [
        option
        for option in ("--gradient-checkpointing", "--batch-size", "--resolution", "--size", "--dtype", "--device cpu")
        if option in line
    ] == remedies


def test_too_little_memory_of_the_computer_gets_one_line_that_names_no_card(base_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("seqlora_core.cli.options.load_base", lambda *_, **__: torch.empty(2**62, dtype=torch.uint8))
    assert main(generate_command(base_folder, tmp_path)) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: The computer has too little memory") and len(line.splitlines()) == 1
    assert "--size" in line and "--device" not in line


def test_a_value_that_looks_like_an_option_gets_a_hint_how_to_write_it(refuse):
    refuse(["generate", "--prompt", "x", "--out", "x.png", "--region", "-0.5,0,1,1=x"], "write OPTION=VALUE")
