"""Every `python -m seqlora_core` command of the README runs as it is written there, at fewer steps and pixels."""

import re
import shlex
from pathlib import Path

import pytest
import tiny_base
import tiny_metrics
import torch
from PIL import Image
from safetensors.torch import save_file

from seqlora_core.cli import demo
from seqlora_core.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.+?)```", README, re.DOTALL)
COMMANDS = [line.split("&&")[-1].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [command for command in COMMANDS if "seqlora_core" in command]


def test_the_comparison_is_the_table_that_the_experiment_wrote():
    report = (Path(__file__).parent / "benchmarks" / "results" / "report.md").read_text("utf-8")
    names = ("| SeqLoRA |", "| InfLoRA |", "| LoRACLR |")
    rows = [line for line in README.splitlines() if line.startswith(names) and "±" in line]
    assert len(rows) == 3 and all(row in report for row in rows)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(demo.SETTINGS, "steps", 2)
    tiny_base.save_single_file(Path("base.safetensors"))
    for index, subject in enumerate(("dog", "cat", "backpack", "style")):
        folder = Path("photos", subject)
        folder.mkdir(parents=True)
        Image.new("RGB", (128, 128), (60 * index, 100, 50)).save(folder / "0.png")
    layer, width = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", tiny_base.CHANNELS[-1]
    style = {f"{layer}.lora_up.weight": torch.ones(width, 1), f"{layer}.lora_down.weight": torch.ones(1, width)}
    save_file(style, "style.safetensors")
    tiny_metrics.save_dino(Path("dino"))
    assert len(COMMANDS) == 14
    for command in COMMANDS:
        arguments = shlex.split(command)[3:]
        shorter = {
            "demo": ["--concepts", "1"],
            "train": ["--steps", "2", "--resolution", "128"],
            "generate": ["--steps", "2", "--size", "128"],
            "evaluate": ["--steps", "2", "--size", "128", "--images", "1"],
            "compose": ["--sampling-steps", "2"],
            "inspect": ["--sampling-steps", "2"],
        }
        arguments += shorter.get(arguments[0], [])
        assert main(arguments) == 0, capsys.readouterr().err
    assert Image.open("picture.png").size == (128, 128)
