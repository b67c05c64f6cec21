"""The documents: short enough, true to the code and to the results, with links that lead somewhere.

Every `python -m seqlora_core` command in them runs as it is written there, at fewer steps and pixels.
"""

import ast
import json
import re
import runpy
import shlex
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import tiny_base
import tiny_metrics
import torch
from PIL import Image
from safetensors.torch import save_file

from seqlora_core.cli import demo
from seqlora_core.cli.main import main

ROOT = Path(__file__).parents[1]
README, CORE, GUIDE, API = (
    ROOT / name for name in ("README.md", "seqlora_core/README.md", "web/docs/guide.md", "web/docs/api.md")
)
BENCHMARKS = ROOT / "tests" / "benchmarks"
DOCUMENTS = [README, CORE, *sorted((ROOT / "web" / "docs").glob("*.md")), *sorted(BENCHMARKS.glob("*.md"))]
REPORT = (BENCHMARKS / "results" / "report.md").read_text("utf-8")


def read(document: Path) -> str:
    return document.read_text("utf-8")


def commands(document: Path) -> list[str]:
    """The lines of all bash blocks, those that end with a backslash joined."""
    blocks = re.findall(r"```bash\n(.+?)```", read(document), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def table(text: str, head: str) -> dict[str, dict[str, str]]:
    """The first table whose head begins so: first cell of a row -> column -> cell."""
    lines = takewhile(lambda line: line.startswith("|"), text[text.index(head) :].splitlines())
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", read(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_has_at_most_150_lines_of_120_characters():
    lines = read(README).splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def results(text: str) -> dict[tuple[str, str, str], str]:
    """All cells of the tables of results: by the head of their first column, their row and their column."""
    heads = re.findall(r"^\| (?:system|changed|tuned) \|.*$", text, re.MULTILINE)
    return {
        (head.split("|")[1].strip(), row, column): cell
        for head in heads
        for row, cells in table(text, head).items()
        for column, cell in cells.items()
    }


@pytest.mark.parametrize("document", [README, BENCHMARKS / "README.md"], ids=["README", "benchmarks"])
def test_the_results_that_documents_show_are_those_of_the_report(document):
    report, shown = results(REPORT), results(read(document))
    assert len(shown) >= 12
    assert {key: cell for key, cell in shown.items() if report.get(key) != cell} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(document):
    text = re.sub(r"```.+?```", "", read(document), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    for link in (markdown or html for markdown, html in links):
        path, _, heading = link.partition("#")
        if path.startswith("https://"):
            continue
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not heading or heading in anchors(target), link
        if document.parent == GUIDE.parent:  # installed without the tests
            assert "tests" not in target.resolve().relative_to(ROOT).parts, link


def messages_of_the_code() -> list[str]:
    """All texts in the code, with a gap where a value is put in."""
    texts = []
    for folder in ("seqlora_core", "nodes"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(read(file))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_the_messages_that_the_guide_explains_are_the_code_s():
    texts = messages_of_the_code()
    rows = re.findall(r"^\| `(.+?)` \|", read(GUIDE).split("## Messages")[1], re.MULTILINE)
    of_the_host = {"Allocation on device"}
    missing = [row for row in rows if row not in of_the_host and not any(row in text for text in texts)]
    assert len(rows) >= 30 and missing == []


def scripts() -> list[str]:
    """Every script and module of the tests and benchmarks that a document runs."""
    text = "\n".join(map(read, DOCUMENTS))
    return sorted(set(re.findall(r"python (?:-m )?(tests[/.][\w/.]+)", text)))


@pytest.mark.parametrize("script", scripts())
def test_scripts_that_documents_name_start(script, monkeypatch, capsys):
    """They take minutes to hours; their help shows that they and what they import are there."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), str(ROOT), *sys.path])  # as Python itself does
    with pytest.raises(SystemExit) as stop:
        if script.endswith(".py"):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    assert not stop.value.code and "usage:" in capsys.readouterr().out


@pytest.mark.slow
def test_the_two_commands_of_the_papers_table_1_run_on_the_tiny_base(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_base.save_single_file(Path("base.safetensors"))
    entries = []
    for index, name in enumerate(("scene_barn", "actionfigure_1", "pet_cat1")):
        images, prompts = Path("customconcept101", "benchmark_dataset", name), Path("customconcept101", "prompts")
        images.mkdir(parents=True)
        prompts.mkdir(exist_ok=True)
        Image.new("RGB", (128, 128), (60 * index, 100, 50)).save(images / "0.png")
        (prompts / f"{name}.txt").write_text("photo of a {}.\n{} in the snow.\n", "utf-8")
        folders = {"instance_data_dir": f"./benchmark_dataset/{name}", "class_data_dir": f"./regularization/{name}"}
        words = {"instance_prompt": "photo of a <new1> thing", "class_prompt": "thing"}
        entries.append({**words, **folders, "prompt_filename": f"prompts/{name}.txt"})
    Path("customconcept101", "dataset.json").write_text(json.dumps(entries), "utf-8")
    for save in (tiny_metrics.save_dino, tiny_metrics.save_dinov2, tiny_metrics.save_dinov3, tiny_metrics.save_clip):
        save(Path(save.__name__.removeprefix("save_")))
    train, evaluate = (shlex.split(line)[3:] for line in commands(BENCHMARKS / "README.md") if "table1" in line)
    train[train.index("32")] = "2"
    assert main([*train, "--steps", "2", "--resolution", "128"]) == 0, capsys.readouterr().err
    metrics = [text for text in evaluate if text.partition("=")[0] in ("dreamsim", "hpsv2")]
    assert len(metrics) == 2  # gigabytes; `test_extra_metrics` has them
    for metric in metrics:
        place = evaluate.index(metric)
        del evaluate[place - 1 : place + 1]
    assert main([*evaluate, "--steps", "2", "--size", "128", "--images", "1"]) == 0, capsys.readouterr().err
    rows = json.loads(Path("table1-scores", "report.json").read_text("utf-8"))["rows"]
    assert {row["metric"] for row in rows} == {"dino", "dinov2", "dinov3", "clip-i", "clip-t"}
    assert {row["concept"] for row in rows} == {"scene_barn", "actionfigure_1", ""}


@pytest.mark.slow
def test_the_commands_of_the_documents_run_in_order(tmp_path, monkeypatch, capsys):
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
    lines = [line.split("&&")[-1].strip() for document in (README, CORE, GUIDE, API) for line in commands(document)]
    ours = [shlex.split(line)[3:] for line in lines if line.startswith("python -m seqlora_core")]
    known = {"demo", "train", "list", "inspect", "compose", "generate", "import", "rename", "remove", "evaluate"}
    assert {arguments[0] for arguments in ours} == known
    for arguments in ours:
        shorter = {
            "demo": ["--concepts", "1"],
            "train": ["--steps", "2", "--resolution", "128"],
            "generate": ["--steps", "2", "--size", "128"],
            "evaluate": ["--steps", "2", "--size", "128", "--images", "1"],
            "compose": ["--sampling-steps", "2"],
            "inspect": ["--sampling-steps", "2"],
        }
        assert main(arguments + shorter.get(arguments[0], [])) == 0, capsys.readouterr().err
    assert Image.open("picture.png").size == (128, 128)
