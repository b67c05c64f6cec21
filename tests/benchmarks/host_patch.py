"""Every concept of a bank as one patch, against the same concepts as chained stock LoraLoader patches, in ComfyUI.

PYTHON_OF_COMFYUI tests/benchmarks/host_patch.py COMFYUI_DIR [--concepts 101] [--runs 5]

Runs on the CPU, on SD1.5's UNet in float16 with random weights.  What is timed is what a user waits for: the nodes,
which read the files, and patching the weights, all on one thread.  The two ways take turns, each time in a process of
their own, so that the peak is their own too; what is shown is the median, and the least and the most.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
ARGUMENTS = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ARGUMENTS.add_argument("comfyui")
ARGUMENTS.add_argument("--concepts", type=int, default=101)
ARGUMENTS.add_argument("--runs", type=int, default=5)
ARGUMENTS.add_argument("--way", choices=["one patch", "chained"], help="measure only this, on the bank in --folder")
ARGUMENTS.add_argument("--folder", type=Path)
arguments = ARGUMENTS.parse_args()
sys.path.insert(0, arguments.comfyui)
sys.argv[1:] = ["--cpu"]  # the host reads its own options from here when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
# Before other imports put folders first on the path that hold modules of the same names.
importlib.import_module("utils.install_util")
stock = importlib.import_module("nodes")

import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from filled_bank import fill  # noqa: E402
from host_pack import pack, unet_config  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from seqlora_core.bank import Bank, BaseIdentity  # noqa: E402


def peak_memory() -> int:
    """Peak memory of this process in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make_model() -> ModelPatcher:
    """SD1.5's UNet on the CPU; weights are random in the attention layers, and never touched elsewhere."""
    torch.manual_seed(0)
    config = comfy.supported_models.SD15(unet_config(torch.float16))
    model = config.get_model({}).eval()
    for name, weight in model.named_parameters():
        weight.requires_grad_(False)
        if "attn" in name:
            weight.normal_(std=0.03)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def run_node(node: type, *inputs) -> tuple:
    """A node's outputs, run on a clone of its class with the hidden inputs of a graph, as the host does it."""
    return node.PREPARE_CLASS_CLONE({}).execute(*inputs).args


def one_patch(model: ModelPatcher, folder: Path) -> ModelPatcher:
    """The pack's nodes: Basis Bank Loader and Compose Concepts."""
    (bank, *_) = run_node(pack("nodes.bank").BasisBankLoader, folder.name)
    return run_node(pack("nodes.compose").ComposeConcepts, model, bank, "")[0]


def chained(model: ModelPatcher, folder: Path) -> ModelPatcher:
    """A stock LoraLoaderModelOnly for each concept's file, one behind the other."""
    for file in sorted((folder / "concepts").glob("*.safetensors")):
        (model,) = stock.LoraLoaderModelOnly().load_lora_model_only(model, file.name, 1.0)
    return model


def measure(folder: Path, way: str) -> dict:
    """Seconds and peak memory of one way; its patched weights go into the folder's `<way>.safetensors`."""
    folder_paths.folder_names_and_paths["seqlora"] = ([str(folder.parent)], set())
    folder_paths.folder_names_and_paths["loras"] = ([str(folder / "concepts")], {".safetensors"})
    pack("nodes")
    torch.set_num_threads(1)
    model = make_model()
    with torch.inference_mode():
        started = Moment.now()
        patched = (one_patch if way == "one patch" else chained)(model, folder)
        composed = Moment.now()
        patched.patch_model(torch.device("cpu"))
        finished = Moment.now()
    peak = peak_memory()
    save_file({key: comfy.utils.get_attr(patched.model, key) for key in patched.patches}, folder / f"{way}.safetensors")
    return {
        "nodes s": composed.processor - started.processor,
        "patching s": finished.processor - composed.processor,
        "together s": finished.processor - started.processor,
        "on the clock s": finished.clock - started.clock,
        "peak GiB": peak / 2**30,
    }


class Moment(NamedTuple):
    """Seconds of the processor, and on the clock."""

    processor: float
    clock: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(time.process_time(), time.perf_counter())


def largest_difference(folder: Path) -> float:
    """Over layers, `|W - W'| / |W'|` of the two ways' patched weights (Frobenius norms)."""
    ours, theirs = (load_file(folder / f"{way}.safetensors") for way in ("one patch", "chained"))
    assert ours.keys() == theirs.keys()
    return max(float((ours[key].float() - theirs[key].float()).norm() / theirs[key].float().norm()) for key in theirs)


def run_alone(way: str, folder: Path) -> dict:
    command = [sys.executable, __file__, arguments.comfyui, "--way", way, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def main() -> None:
    if arguments.way:
        print(json.dumps(measure(arguments.folder, arguments.way)))
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "bank"
        base, layers = pack("nodes.host.model").identify(make_model(), "random weights")
        fill(Bank.open_or_create(folder, BaseIdentity(base.name, base.fingerprint), layers), arguments.concepts)
        runs = {"one patch": [], "chained": []}
        for _ in range(arguments.runs):
            for way, rows in runs.items():
                rows.append(run_alone(way, folder))
        for way, rows in runs.items():
            print(way)
            for name in rows[0]:
                values = [row[name] for row in rows]
                print(f"  {name:15}{statistics.median(values):6.2f}   ({min(values):.2f} to {max(values):.2f})")
        for name in ("together s", "on the clock s"):
            ours, theirs = (statistics.median(row[name] for row in rows) for rows in runs.values())
            print(f"{name}: {theirs / ours:.1f} times faster")
        print(f"weights differ by at most {largest_difference(folder):.1e} of their norm")


if __name__ == "__main__":
    main()
