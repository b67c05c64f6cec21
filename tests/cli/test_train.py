"""Training from the command line: real photos, every mistake, Ctrl-C and resuming."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_base
import torch
from PIL import Image
from safetensors.torch import load_file
from training_runs import train_command

from seqlora_core.bank import Bank
from seqlora_core.cli.main import main
from seqlora_core.model.sd15 import in_preset

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_three_photo_subjects_from_training_to_an_image(base_folder, photos, tmp_path, capsys):
    def run(*arguments) -> str:
        capsys.readouterr()
        assert main(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    bank = tmp_path / "bank"
    for subject in ("dog", "cat", "backpack"):
        run(
            *("train", "--base", base_folder, "--bank", bank, "--name", subject, "--images", photos / subject),
            *("--class-word", subject, "--steps", 10, "--resolution", 128),
        )
    inspection = json.loads(run("inspect", "--bank", bank, "--json"))
    assert inspection["ok"] is True
    assert inspection["max_overlap"] <= 1e-5
    used = {name: layer["used"] for name, layer in inspection["layers"].items()}
    assert used == {name: 12 if in_preset(name, "cross-kv") else 0 for name in used}
    out = tmp_path / "sum.safetensors"
    assert "rank 8" in run("compose", "--bank", bank, "--concept", "dog", "--concept", "cat:0.8", "--out", out)
    picture = tmp_path / "picture.png"
    run(
        *("generate", "--base", base_folder, "--bank", bank, "--concept", "dog", "--concept", "cat:0.8"),
        *("--prompt", "a sksdog dog and a skscat cat", "--out", picture, "--steps", 2, "--size", 128),
    )
    assert Image.open(picture).size == (128, 128)


@pytest.mark.parametrize(("policy", "status"), [("error", 2), ("skip", 0), ("replace", 0)])
def test_an_existing_name_follows_the_policy(base_folder, bank, pictures, capsys, document, policy, status):
    before = (bank / "bank.json").read_bytes()
    command = train_command(base_folder, bank, pictures, "DOG", "--on-existing", policy, "--rank", "3")
    assert main(command) == status
    capsys.readouterr()
    assert main(["list", "--bank", str(bank), "--json"]) == 0
    assert [c["rank"] for c in document()["concepts"]] == [3 if policy == "replace" else 2]
    assert ((bank / "bank.json").read_bytes() == before) == (policy != "replace")


def test_the_same_training_run_again_is_an_error_with_the_ways_out(base_folder, bank, pictures, refuse):
    for way_out in ("another --name", "--on-existing replace", "--on-existing skip"):
        refuse(train_command(base_folder, bank, pictures, "dog"), way_out)


MISTAKES = {
    "no images": (["--images", "{empty}"], "no images"),
    "images of no name": (["--images", ""], "--images: is empty"),
    "bank of no name": (["--bank", " "], "--bank: is empty"),
    "name beyond all bounds": (["--images", "x" * 5000], "--images: is no path"),
    "path with a zero": (["--bank", "a\0b"], "--bank: is no path"),
    "no folder": (["--images", "{empty}/none"], "no folder"),
    "unreadable image": (["--images", "{broken}"], "cannot be read"),
    "unknown base": (["--base", "{empty}/none"], "no base model"),
    "unsupported base": (["--base", "{broken}/a.png"], "safetensors"),
    "name exists": (["--name", "dog"], "already has"),
    "rank too large": (["--rank", "4000"], "No layer has room"),
    "empty class word": (["--class-word", " "], "class word is empty"),
    "empty token": (["--token", ""], "token is empty"),
    "name with a path": (["--name", "../x"], "not a path"),
    "no such method": (["--method", "magic"], "invalid choice"),
    "steps that are no number": (["--steps", "many"], "--steps"),
    "size that does not fit": (["--resolution", "72"], "multiple of 64"),
    "no such device": (["--device", "cuda:9"], "no device"),
    "no such prior": (["--prior-images", "{empty}"], "no images"),
    "checkpoints never": (["--checkpoint-seconds", "inf"], "--checkpoint-seconds: must be a finite number"),
    "checkpoints always": (["--checkpoint-seconds", "0"], "--checkpoint-seconds: must be above 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_and_changes_nothing(base_folder, bank, pictures, refuse, mistake):
    arguments, message = MISTAKES[mistake]
    refuse([*train_command(base_folder, bank, pictures, "new"), *arguments], message)


def test_a_bank_of_another_base_is_refused_before_training(bank, pictures, tmp_path, capsys):
    other = tiny_base.save_folder(tmp_path / "other-sd", seed=9)
    assert main(train_command(other, bank, pictures, "cat")) == 2
    assert "small-sd" in (line := capsys.readouterr().err.strip().splitlines()[-1])
    assert "other-sd" in line


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console, the tests' own one too")
def test_ctrl_c_saves_a_checkpoint_and_a_killed_training_resumes(base_folder, pictures, tmp_path):
    bank = tmp_path / "bank"
    command = train_command(base_folder, bank, pictures, "dog", "--steps", "24", "--checkpoint-seconds", "0.1")
    checkpoint = Bank(bank, None).checkpoint_path("dog")
    # With several threads some processors round differently from run to run, interrupted or not.
    one_thread = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    program = [sys.executable, "-m", "seqlora_core"]
    threads = torch.get_num_threads()
    for sent, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        stamp = checkpoint.stat().st_mtime if checkpoint.exists() else 0
        process = subprocess.Popen([*program, *command, "--resume"], **one_thread)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime > stamp:
                break
            time.sleep(0.05)
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == status, stderr
        assert "Traceback" not in stderr
        if sent == signal.SIGINT:
            assert re.search(r"Stopped at step \d+ of 32; the same command with --resume continues\.", stderr)
        assert not (json.loads((bank / "bank.json").read_text("utf-8"))["concepts"])
    unbroken = train_command(base_folder, tmp_path / "other", pictures, "dog", "--steps", "24")
    torch.set_num_threads(1)
    try:
        assert main([*command, "--resume"]) == main(unbroken) == 0
    finally:
        torch.set_num_threads(threads)
    first, second = (load_file(folder / "concepts" / "dog.safetensors") for folder in (bank, tmp_path / "other"))
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)
