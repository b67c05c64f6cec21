"""What the node pack adds to ComfyUI's start: importing it, and making the schemas of its nodes.

Run with the host's interpreter: python tests/benchmarks/import_time.py COMFYUI_DIR [--runs N]

Each run is a fresh process in which PyTorch and the host's own modules are imported already, as they are when the host
comes to its custom nodes.
"""

import argparse
import asyncio
import gc
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARK = "the pack starts here"
SHOWN = 10


def import_pack(host: str) -> tuple[float, float]:
    """Seconds on the clock and of the processor, once everything that the host has by then is imported.

    Those of the processor are this thread's: threads that the host has started are not the pack's.
    """
    sys.path.insert(0, host)
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401  (first, as in main.py: a later path of the host's has another `utils`)

    import comfy_api.latest  # noqa: F401  # isort: skip
    import server  # noqa: F401

    import nodes  # noqa: F401  (the host's, which imports torch)

    gc.collect()
    gc.freeze()  # a full collection of the host's objects takes 0.2 s, and falls into some import or other by chance
    print(MARK, file=sys.stderr, flush=True)
    clock, processor = time.perf_counter(), time.thread_time()
    spec = importlib.util.spec_from_file_location("seqlora", ROOT / "__init__.py")
    pack = sys.modules["seqlora"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    extension = asyncio.run(pack.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        node.GET_SCHEMA()
    return time.perf_counter() - clock, time.thread_time() - processor


def measure(host: str, *options: str) -> tuple[list[float], str]:
    """Both times in a fresh process, and what `-X importtime` says of the pack's imports."""
    command = [sys.executable, *options, __file__, host, "--once"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [float(part) for part in done.stdout.splitlines()[-1].split()], done.stderr.partition(MARK)[2]


def slowest(log: str) -> list[tuple[int, str]]:
    """(microseconds of its own, module), the most expensive first."""
    lines = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", log)
    return sorted(((int(own), module) for own, module in lines), reverse=True)[:SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host", help="ComfyUI's checkout")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(*import_pack(args.host))
        return
    measure(args.host)  # compiles what has changed
    clock, processor = zip(*(measure(args.host)[0] for _ in range(args.runs)), strict=True)
    for name, seconds in (("on the clock", clock), ("of the processor", processor)):
        print(f"{statistics.median(seconds):.3f} s {name} ({min(seconds):.3f} to {max(seconds):.3f}, {args.runs} runs)")
    for own, module in slowest(measure(args.host, "-X", "importtime")[1]):
        print(f"  {own / 1e6:.3f} s  {module}")


if __name__ == "__main__":
    main()
