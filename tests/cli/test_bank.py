"""The commands on a bank: list, inspect, remove and rename."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from seqlora_core.cli.main import main

ROOT = Path(__file__).parents[2]


def test_list_and_inspect_print_one_json_document(bank, document):
    assert main(["list", "--bank", str(bank), "--json"]) == 0
    (concept,) = document()["concepts"]
    expected = {"name": "dog", "token": "sksdog", "class_word": "dog", "rank": 2, "method": "seqlora"}
    assert expected.items() <= concept.items()
    assert main(["inspect", "--bank", str(bank), "--json"]) == 0
    inspection = document()
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


def test_rename_and_remove(bank, capsys, document):
    assert main(["rename", "--bank", str(bank), "--name", "dog", "--to", "Rex"]) == 0
    assert main(["remove", "--bank", str(bank), "--name", "rex"]) == 0
    capsys.readouterr()
    assert main(["list", "--bank", str(bank), "--json"]) == 0
    assert document()["concepts"] == []


def test_inspect_with_a_base_measures_and_draws_the_interference(base_folder, two_concepts, tmp_path, document):
    picture = tmp_path / "crosstalk.png"
    command = ["inspect", "--bank", str(two_concepts), "--base", str(base_folder), "--sampling-steps", "2"]
    assert main([*command, "--json", "--plot", str(picture)]) == 0
    interference = document()["interference"]
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


def test_a_plot_without_a_base_is_refused(bank, refuse):
    refuse(["inspect", "--bank", bank, "--plot", "x.png"], "give --base too")


def test_a_folder_without_a_bank_is_refused(refuse):
    refuse(["list", "--bank", "{empty}"], "no bank")
