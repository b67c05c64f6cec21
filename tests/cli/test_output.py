"""Outputs that would destroy an input, or a file of a bank, are refused before anything is done."""

import os
from pathlib import Path

import pytest
from training_runs import train_command

from seqlora_core.cli.main import main

IN_THE_BANK = {
    "compose": ["--concept", "dog", "--out", "{bank}/concepts/dog.safetensors"],
    "compose to a new file": ["--concept", "dog", "--out", "{bank}/concepts/new.safetensors"],
    "compose through a link": ["--concept", "dog", "--out", "{link}.safetensors"],
    "compose through a linked folder": ["--concept", "dog", "--out", "{link}/concepts/dog.safetensors"],
    "generate": ["--base", "mini", "--prompt", "x", "--concept", "dog", "--out", "{bank}/thumbnails/dog.png"],
    "inspect": ["--base", "mini", "--plot", "{bank}/plot.png"],
    "evaluate": ["--base", "mini", "--out", "{bank}/evaluation"],
    "evaluate in place": ["--base", "mini", "--out", "{bank}"],
}


@pytest.mark.parametrize("case", IN_THE_BANK)
def test_an_output_in_a_bank_is_refused(bank, tmp_path, refuse, case):
    link = tmp_path / "link"
    link.symlink_to(bank, target_is_directory=True)
    link.with_suffix(".safetensors").symlink_to(bank / "concepts" / "dog.safetensors")
    content = (bank / "concepts" / "dog.safetensors").read_bytes()
    arguments = [part.format(bank=bank, link=link) for part in IN_THE_BANK[case]]
    refuse([case.split()[0], "--bank", bank, *arguments], "lies in the bank")
    assert (bank / "concepts" / "dog.safetensors").read_bytes() == content


def test_an_output_that_is_an_input_is_refused(base_folder, base_file, bank, tmp_path, refuse):
    lora, linked = tmp_path / "lora.safetensors", tmp_path / "linked.png"
    os.link(bank / "concepts" / "dog.safetensors", lora)
    linked.symlink_to(lora)
    compose = ["compose", "--bank", bank, "--concept", "dog", "--base"]
    refuse([*compose, base_file, "--out", base_file], "is also an input")
    weights = next(Path(base_folder).glob("unet/*.safetensors"))
    refuse([*compose, base_folder, "--out", weights], "is also an input")
    refuse(["generate", "--base", base_folder, "--lora", lora, "--prompt", "x", "--out", linked], "is also an input")


def test_an_exploded_run_is_an_error_that_names_the_way_to_store_it(base_folder, pictures, tmp_path, capsys):
    command = train_command(base_folder, tmp_path / "bank", pictures, "dog", "--method", "lora", "--layers", "all")
    command += ["--rank", "16", "--steps", "8", "--lr-coefficients", "1", "--lr-basis", "1", "--clip", "0"]
    assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: The loss rose from")
    assert "--resume --store-anyway" in error
    assert main([*command, "--resume", "--store-anyway"]) == 0
    assert "Learned 'dog'" in capsys.readouterr().out
