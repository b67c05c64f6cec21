"""Everything that a machine with a graphics card is to show, in one command and under eight minutes:

    python -m tests.benchmarks.cuda --out DIR [--device auto] [--size full|toy] [--minutes 8] [--only PART ...]

It writes DIR/cuda.json and DIR/cuda.md after each part (see `cuda_parts`).  A part that fails or runs out of time is
recorded with its error, and the next one begins.  On a CPU the size is `toy` unless `--size full` is given: then the
figures say that the command works, and nothing about speed.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import diffusers
import torch

from seqlora_core.cli.options import count, positive
from seqlora_core.devices import resolve_device
from tests.benchmarks.cuda_parts import PARTS, Setting, variants

_COLUMNS = {
    "part": "part",
    "variant": "what",
    "seconds": "s",
    "ratio": "relative to the part's first",
    "setup": "set-up, in steps",
    "peak": "peak GiB",
    "note": "notes",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=("full", "toy"))
    parser.add_argument(
        "--pixels", type=count, metavar="PX", help="side of the images (default: 512, or 64 at toy size)"
    )
    parser.add_argument("--minutes", type=positive, default=8.0)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # a part, in a process of its own
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    size = arguments.size or ("full" if device.type == "cuda" else "toy")
    setting = Setting(str(device), size == "toy", arguments.pixels or (64 if size == "toy" else 512))
    if arguments.run:
        _run_part(arguments.run, setting)
        return
    deadline = time.monotonic() + 60 * arguments.minutes
    rows: list[dict] = []
    for part in arguments.only:
        rows += _part_in_process(part, deadline - time.monotonic())
        write(arguments.out, machine(setting), rows)
    print((arguments.out / "cuda.md").read_text("utf-8"))


def _run_part(part: str, setting: Setting) -> None:
    """Print one JSON line per variant; one that fails does not end the others."""
    for variant, action in variants(part, setting):
        try:
            row = action()
        except Exception as error:  # whatever it is goes into the table
            row = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
        print(f"\n{json.dumps({'part': part, 'variant': variant, **row})}", flush=True)


def _part_in_process(part: str, seconds: float) -> list[dict]:
    """The rows of a part, of which a process that ran out of time or memory has made some."""
    if seconds <= 0:
        return [{"part": part, "variant": "", "error": "the time was up before it began"}]
    command = [sys.executable, "-m", "tests.benchmarks.cuda", *sys.argv[1:], "--run", part]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        output, error = done.stdout, (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired as stopped:
        output, error = (stopped.stdout or b"").decode(), f"stopped after {seconds:.0f} s, when the time was up"
    rows = [json.loads(line) for line in output.splitlines() if line.startswith('{"part"')]
    return [*rows, {"part": part, "variant": "", "error": error}] if error else rows


def machine(setting: Setting) -> dict:
    """What the figures were measured on."""
    card = torch.device(setting.device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(setting.device) if card else platform.processor() or platform.machine(),
        "size": "toy" if setting.toy else "SD1.5",
        "pixels": setting.pixels,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
    }


def write(out: Path, facts: Mapping[str, object], rows: Sequence[dict]) -> None:
    """Write the rows as JSON, and as one table in Markdown with the targets below it."""
    out.mkdir(parents=True, exist_ok=True)
    found = targets(rows)
    document = {"machine": dict(facts), "rows": list(rows), "targets": found}
    (out / "cuda.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    lines = [", ".join(f"{name} {value}" for name, value in facts.items() if value), ""]
    lines += [f"| {' | '.join(_COLUMNS.values())} |", f"| {' | '.join('---' for _ in _COLUMNS)} |"]
    first: dict[str, float] = {}
    for row in rows:
        base = first.setdefault(row["part"], row.get("seconds") or 0.0)
        lines.append(f"| {' | '.join(_cell(row, column, base) for column in _COLUMNS)} |")
    lines += ["", "| target | found | met |", "| --- | --- | --- |"]
    lines += [
        f"| {name} at most {most:g} | {value:.2f} | {'yes' if met else 'no'} |" for name, value, most, met in found
    ]
    (out / "cuda.md").write_text("\n".join(lines) + "\n", "utf-8")


def _cell(row: Mapping, column: str, first: float) -> str:
    if column == "ratio":
        return f"{row['seconds'] / first:.2f}" if first and row.get("seconds") else ""
    if column == "note":
        return str(row.get("error") or row.get("note", "")).replace("|", "/")
    value = row.get(column)
    if column == "peak" and value:
        return f"{value / 2**30:.2f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value or "")


def targets(rows: Sequence[Mapping]) -> list[tuple[str, float, float, bool]]:
    """Each target with what was found, its bound, and whether it is met; those without figures are left out."""
    by_name = {(row["part"], row["variant"]): row for row in rows}

    def figure(part: str, variant: str, key: str) -> float | None:
        return by_name.get((part, variant), {}).get(key)

    def ratio(key: str, one: tuple[str, str], other: tuple[str, str]) -> float | None:
        a, b = figure(*one, key), figure(*other, key)
        return a / b if a and b else None

    dtypes = dict.fromkeys(row["part"].partition(" ")[2] for row in rows if row["part"].startswith("steps "))
    asked: list[tuple[str, float | None, float]] = []
    for dtype in dtypes:
        steps = f"steps {dtype}"
        ours, peft = (steps, "seqlora"), (steps, "lora (PEFT)")
        asked += [
            (f"{dtype}: seqlora's step over PEFT's", ratio("seconds", ours, peft), 2.05),
            (f"{dtype}: seqlora's memory over PEFT's", ratio("peak", ours, peft), 1.05),
            (f"{dtype}: step beside earlier concepts", ratio("seconds", (steps, "seqlora, large bank"), ours), 1.05),
            (f"{dtype}: set-up for keys and values, in steps", figure(*ours, "setup"), 10),
            (f"{dtype}: set-up for all layers, in steps", figure(steps, "seqlora, all layers", "setup"), 25),
        ]
    asked.append(("seconds to open a bank of 1,000", figure("bank", "open 1,000 concepts", "seconds"), 0.05))
    asked.append(("seconds to list a bank of 1,000", figure("bank", "list 1,000 concepts", "seconds"), 0.5))
    asked.append(("synchronizations per step", figure("profile", "seqlora", "syncs"), 1))
    return [(name, value, most, value <= most) for name, value, most in asked if value is not None]


if __name__ == "__main__":
    main()
