"""The command line as people type it: the main job on real photos, every mistake, Ctrl-C and resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_runs import train_command

import seqlora_core.model
from seqlora_core.bank import Bank
from seqlora_core.cli.main import main
from seqlora_core.composition.fusion import FUSIONS, WITHOUT_BASE
from seqlora_core.model.sd15 import in_preset

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, colour in enumerate(("red", "green")):
        Image.new("RGB", (80, 64), colour).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def trained(base_folder, pictures, tmp_path_factory) -> Path:
    bank = tmp_path_factory.mktemp("cli") / "bank"
    assert main(train_command(base_folder, bank, pictures, "dog")) == 0
    return bank


@pytest.fixture
def bank(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "bank")


def document(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_three_photo_subjects_from_training_to_a_picture(base_folder, photos, tmp_path, capsys):
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


def test_list_and_inspect_print_one_json_document(bank, capsys):
    assert main(["list", "--bank", str(bank), "--json"]) == 0
    (concept,) = document(capsys)["concepts"]
    expected = {"name": "dog", "token": "sksdog", "class_word": "dog", "rank": 2, "method": "seqlora"}
    assert expected.items() <= concept.items()
    assert main(["inspect", "--bank", str(bank), "--json"]) == 0
    inspection = document(capsys)
    assert inspection["ok"] is True
    assert inspection["max_overlap"] == 0.0
    adapted = [layer for layer in inspection["layers"].values() if layer["used"]]
    assert adapted and all(layer["free"] == layer["width"] - 2 for layer in adapted)


def test_a_reader_that_closes_early_is_no_error(bank):
    command = [sys.executable, "-m", "seqlora_core", "list", "--json", "--bank", str(bank)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize(("policy", "status"), [("error", 2), ("skip", 0), ("replace", 0)])
def test_an_existing_name_follows_the_policy(base_folder, bank, pictures, capsys, policy, status):
    before = (bank / "bank.json").read_bytes()
    command = train_command(base_folder, bank, pictures, "DOG", "--on-existing", policy, "--rank", "3")
    assert main(command) == status
    capsys.readouterr()
    assert main(["list", "--bank", str(bank), "--json"]) == 0
    assert [c["rank"] for c in document(capsys)["concepts"]] == [3 if policy == "replace" else 2]
    assert ((bank / "bank.json").read_bytes() == before) == (policy != "replace")


def test_rename_and_remove(bank, capsys):
    assert main(["rename", "--bank", str(bank), "--name", "dog", "--to", "Rex"]) == 0
    assert main(["remove", "--bank", str(bank), "--name", "rex"]) == 0
    capsys.readouterr()
    assert main(["list", "--bank", str(bank), "--json"]) == 0
    assert document(capsys)["concepts"] == []


def test_strength_zero_generates_what_the_plain_base_does(base_folder, bank, tmp_path):
    pictures = []
    for index, concept in enumerate(([], ["--bank", str(bank), "--concept", "dog:0"])):
        out = tmp_path / f"{index}.png"
        command = ["generate", "--base", str(base_folder), *concept, "--prompt", "a dog", "--out", str(out)]
        assert main([*command, "--steps", "2", "--size", "64", "--seed", "3"]) == 0
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[1]


MISTAKES = {
    "no images": (["train", "--images", "{empty}"], "no images"),
    "no folder": (["train", "--images", "{empty}/none"], "no folder"),
    "unreadable image": (["train", "--images", "{broken}"], "cannot be read"),
    "unknown base": (["train", "--base", "{empty}/none"], "no base model"),
    "unsupported base": (["train", "--base", "{broken}/a.png"], "safetensors"),
    "name exists": (["train", "--name", "dog"], "already has"),
    "rank too large": (["train", "--rank", "4000"], "No layer has room"),
    "empty class word": (["train", "--class-word", " "], "class word is empty"),
    "empty token": (["train", "--token", ""], "token is empty"),
    "name with a path": (["train", "--name", "../x"], "not a path"),
    "no such method": (["train", "--method", "magic"], "invalid choice"),
    "steps that are no number": (["train", "--steps", "many"], "--steps"),
    "size that does not fit": (["train", "--resolution", "72"], "multiple of 64"),
    "no such device": (["train", "--device", "cuda:9"], "no device"),
    "no such prior": (["train", "--prior-images", "{empty}"], "no images"),
    "strength that is no number": (["compose", "--concept", "dog:high"], "not a number"),
    "unknown concept": (["compose", "--concept", "cat"], "no concept 'cat'"),
    "not a safetensors output": (["compose", "--concept", "dog", "--out", "x.ckpt"], "safetensors"),
    "fusion without a base": (["compose", "--concept", "dog", "--fusion", "loraclr"], "needs the base model"),
    "unknown fusion": (["compose", "--concept", "dog", "--fusion", "magic"], "invalid choice"),
    "no such LoRA": (["generate", "--concept", "dog", "--lora", "{empty}/x.safetensors"], "cannot be read"),
    "plot without a base": (["inspect", "--plot", "x.png"], "give --base too"),
    "unknown concept to generate": (["generate", "--concept", "cat"], "no concept 'cat'"),
    "prompt without a place": (["evaluate", "--prompt", "a photo"], "needs {{}} once"),
    "prompt with another place": (["evaluate", "--prompt", "{{}} in {{where}}"], "needs {{}} once"),
    "seed too large": (["generate", "--seed", str(2**64)], "--seed"),
    "output that is a folder": (["compose", "--concept", "dog", "--out", "{empty}.safetensors"], "it is a folder"),
    "output inside a file": (["evaluate", "--metric", "identity", "--out", "{broken}/a.png/x"], "Cannot write"),
    "no such bank": (["list", "--bank", "{empty}"], "no bank"),
    "no command": ([], "required"),
    "unknown command": (["fly"], "invalid choice"),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_gets_one_line_and_status_2_and_changes_nothing(
    base_folder, bank, pictures, tmp_path, capsys, mistake
):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    empty.with_suffix(".safetensors").mkdir()
    (broken / "a.png").write_bytes(b"\x89PNG rubbish")
    command, message = MISTAKES[mistake]
    defaults = {
        "train": train_command(base_folder, bank, pictures, "new"),
        "inspect": ["inspect", "--bank", str(bank)],
        "compose": ["compose", "--bank", str(bank), "--out", str(tmp_path / "x.safetensors")],
        "generate": [
            *("generate", "--base", str(base_folder), "--bank", str(bank)),
            *("--prompt", "x", "--out", str(tmp_path / "x.png")),
        ],
        "evaluate": ["evaluate", "--base", str(base_folder), "--bank", str(bank), "--out", str(tmp_path / "x.out")],
    }
    before = (bank / "bank.json").read_bytes()
    more = [part.format(empty=empty, broken=broken) for part in command[1:]]
    assert main([*defaults.get(command[0] if command else "", command[:1]), *more]) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message.format() in last
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert (bank / "bank.json").read_bytes() == before
    assert not list(tmp_path.glob("x.*"))


def test_a_bank_of_another_base_is_refused_before_training(bank, pictures, tmp_path, capsys):
    import tiny_base

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
        assert not (json.loads((bank / "bank.json").read_text("utf-8"))["concepts"])
    unbroken = train_command(base_folder, tmp_path / "other", pictures, "dog", "--steps", "24")
    torch.set_num_threads(1)
    try:
        assert main([*command, "--resume"]) == main(unbroken) == 0
    finally:
        torch.set_num_threads(threads)
    resumed, whole = ((folder / "concepts" / "dog.safetensors") for folder in (bank, tmp_path / "other"))
    from safetensors.torch import load_file

    first, second = load_file(resumed), load_file(whole)
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)


@pytest.fixture(scope="module")
def two_concepts(base_folder, pictures, tmp_path_factory) -> Path:
    bank = tmp_path_factory.mktemp("two") / "bank"
    for name in ("dog", "cat"):
        assert main(train_command(base_folder, bank, pictures, name, "--layers", "cross", "--method", "lora")) == 0
    return bank


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_writes_a_file_that_generate_draws_with(base_folder, two_concepts, tmp_path, capsys, fusion):
    composed, picture = tmp_path / "x.safetensors", tmp_path / "x.png"
    base = [] if fusion in WITHOUT_BASE else ["--base", str(base_folder), "--sampling-steps", "2"]
    command = ["compose", "--bank", str(two_concepts), "--concept", "dog", "--concept", "cat:0.5", *base]
    assert main([*command, "--fusion", fusion, "--out", str(composed)]) == 0
    rank = 128 if fusion == "loraclr" else 4
    assert f"2 concepts, rank {rank}, by {fusion} in" in capsys.readouterr().out
    command = ["generate", "--base", str(base_folder), "--lora", str(composed), "--prompt", "a dog", "--steps", "1"]
    assert main([*command, "--size", "64", "--out", str(picture)]) == 0
    assert Image.open(picture).size == (64, 64)


def test_a_composed_file_acts_as_the_concepts_it_was_made_of(base_folder, two_concepts, tmp_path):
    composed = tmp_path / "sum.safetensors"
    concepts = ["--bank", str(two_concepts), "--concept", "dog:3", "--concept", "cat:-2"]
    assert main(["compose", *concepts, "--out", str(composed)]) == 0
    pictures = []
    for index, chosen in enumerate((concepts, ["--lora", str(composed)], [])):
        out = tmp_path / f"{index}.png"
        command = ["generate", "--base", str(base_folder), *chosen, "--prompt", "a dog", "--steps", "2", "--size", "64"]
        assert main([*command, "--out", str(out)]) == 0
        pictures.append(Image.open(out).tobytes())
    differences = [max(abs(a - b) for a, b in zip(pictures[0], other, strict=True)) for other in pictures[1:]]
    assert differences[0] <= 1 < differences[1]


def test_inspect_with_a_base_measures_and_draws_the_interference(base_folder, two_concepts, tmp_path, capsys):
    picture = tmp_path / "crosstalk.png"
    command = ["inspect", "--bank", str(two_concepts), "--base", str(base_folder), "--sampling-steps", "2"]
    assert main([*command, "--json", "--plot", str(picture)]) == 0
    interference = document(capsys)["interference"]
    assert [concept["name"] for concept in interference["concepts"]] == ["dog", "cat"]
    assert interference["concepts"][1]["forecast"] == 0.0
    assert interference["crosstalk"]["dog"]["cat"] == pytest.approx(interference["concepts"][0]["forecast"])
    assert Image.open(picture).size[0] > 200


def test_inspect_prints_a_row_and_a_forecast_for_every_concept(base_folder, two_concepts, capsys):
    capsys.readouterr()
    command = ["inspect", "--bank", str(two_concepts), "--base", str(base_folder), "--sampling-steps", "2"]
    assert main(command) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-1] for line in lines if len(line) == 4 and line[0] in ("dog", "cat")][1] == "0.00%"
    assert sum(line[0] in ("dog:", "cat:") for line in lines) == 2


def test_without_the_packages_of_the_command_line_the_user_is_told_which(bank, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for name in [name for name in sys.modules if name.startswith(("diffusers.", "seqlora_core.model.base"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(seqlora_core.model, "base", raising=False)  # and is what it was before afterwards
    command = ["generate", "--base", "mini", "--prompt", "x", "--out", str(tmp_path / "x.png")]
    assert main(command) == 2
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "remedies"),
    [
        ("train", ["--gradient-checkpointing", "--batch-size", "--resolution", "--dtype", "--device cpu"]),
        ("generate", ["--size", "--dtype", "--device cpu"]),
    ],
)
def test_too_little_memory_on_the_card_gets_one_line_with_what_takes_less(
    base_folder, pictures, tmp_path, monkeypatch, capsys, command, remedies
):
    def out_of_memory(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("seqlora_core.model.base.load_base", out_of_memory)
    generate = ["generate", "--base", str(base_folder), "--prompt", "x", "--out", str(tmp_path / "x.png")]
    train = train_command(base_folder, tmp_path / "bank", pictures, "dog")
    assert main({"train": train, "generate": generate}[command]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: The graphics card has too little memory")
    assert len(line.splitlines()) == 1
    assert [
        option
        for option in ("--gradient-checkpointing", "--batch-size", "--resolution", "--size", "--dtype", "--device cpu")
        if option in line
    ] == remedies
