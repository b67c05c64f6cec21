"""The command for machines with a graphics card, at toy size on the CPU: every part runs, and failures are recorded."""

import json
import sys

import pytest

from tests.benchmarks import cuda
from tests.benchmarks.cuda_parts import PARTS, Setting

TOY = Setting("cpu", toy=True, pixels=64)
# The first starts this suite again, a CPU cannot train in float16, and bfloat16 runs the code of float32.
OUTSIDE = ("tests", "steps float16", "steps bfloat16")


@pytest.mark.parametrize("part", [part for part in PARTS if part not in OUTSIDE])
def test_every_part_of_the_kit_runs_at_toy_size(part, capsys, tmp_path):
    cuda._run_part(part, TOY)
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith('{"part"')]
    assert rows
    assert [row for row in rows if "error" in row] == []
    cuda.write(tmp_path, cuda.machine(TOY), rows)
    table = (tmp_path / "cuda.md").read_text("utf-8")
    assert all(row["variant"] in table for row in rows)


def test_a_part_that_cannot_start_or_runs_out_of_time_is_recorded(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["cuda", "--out", str(tmp_path), "--device", "cpu"])
    [failed] = cuda._part_in_process("steps float16", 120)
    assert "float16 cannot train on the cpu" in failed["error"]
    [late] = cuda._part_in_process("bank", 0.05)
    assert "when the time was up" in late["error"]
    assert "the time was up before" in cuda._part_in_process("bank", 0)[0]["error"]
    cuda.write(tmp_path, cuda.machine(TOY), [failed, late])
    assert json.loads((tmp_path / "cuda.json").read_text("utf-8"))["targets"] == []


def test_targets_compare_the_figures_that_they_name():
    rows = [
        {"part": "steps bfloat16", "variant": "lora (PEFT)", "seconds": 1.0, "peak": 100},
        {"part": "steps bfloat16", "variant": "seqlora", "seconds": 2.0, "peak": 110, "setup": 12.0},
        {"part": "bank", "variant": "open 1,000 concepts", "seconds": 0.04},
    ]
    assert [(name, round(value, 2), met) for name, value, _, met in cuda.targets(rows)] == [
        ("bfloat16: seqlora's step over PEFT's", 2.0, True),
        ("bfloat16: seqlora's memory over PEFT's", 1.1, False),
        ("bfloat16: set-up for keys and values, in steps", 12.0, False),
        ("seconds to open a bank of 1,000", 0.04, True),
    ]


@pytest.mark.parametrize("wrong", [["--pixels", "0"], ["--pixels", "-64"], ["--minutes", "nan"], ["--minutes", "0"]])
def test_a_number_that_means_nothing_is_refused(monkeypatch, tmp_path, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["cuda", "--out", str(tmp_path / "out"), *wrong])
    with pytest.raises(SystemExit):
        cuda.main()
    assert f"argument {wrong[0]}: must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
