"""The time of two regions with a concept each against a plain prompt, in ComfyUI.

PYTHON_OF_COMFYUI tests/benchmarks/host_regions.py COMFYUI_DIR [--latents 64] [--runs 3] [--layers cross-kv]

Runs on the CPU, on SD1.5's UNet in float32 with random weights, on one thread.  A run is one step with guidance: one
evaluation of the UNet for the prompt and the negative prompt.  The two ways take turns; what is shown is the median of
the processor's time, and the least and the most.
"""

import argparse
import importlib
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
ARGUMENTS = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ARGUMENTS.add_argument("comfyui")
ARGUMENTS.add_argument("--latents", type=int, default=64)
ARGUMENTS.add_argument("--runs", type=int, default=3)
ARGUMENTS.add_argument("--layers", choices=["cross-kv", "cross", "all"], default="cross-kv")
arguments = ARGUMENTS.parse_args()
sys.path.insert(0, arguments.comfyui)
sys.argv[1:] = ["--cpu"]  # the host reads its own options from here when it is imported

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
# Before other imports put folders first on the path that hold modules of the same names.
importlib.import_module("utils.install_util")

import comfy.conds as conds  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from host_pack import pack, unet_config  # noqa: E402

RANK, TOKENS, WIDTH = 4, 77, 768


def make_model() -> ModelPatcher:
    model = comfy.supported_models.SD15(unet_config(torch.float32)).get_model({}).eval()
    for weight in model.parameters():
        weight.requires_grad_(False).normal_(std=0.02)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def with_regions(model: ModelPatcher) -> tuple[ModelPatcher, list, list]:
    """MODEL with a concept in each half, and its positive and negative conditioning."""
    sd15, adapters = pack("seqlora_core.model.sd15"), pack("seqlora_core.model.adapters")
    confinement, regions = pack("seqlora_core.composition.confinement"), pack("seqlora_core.composition.regions")
    selection, notes = pack("seqlora_core.composition.selection"), pack("nodes.host.own_words")
    shapes = sd15.layer_shapes(sd15.find_layers(model.model.diffusion_model, arguments.layers))
    parts = [
        selection.SelectedConcept(
            name,
            name,
            {
                layer: adapters.Adapter(torch.randn(shape.out, RANK), torch.randn(RANK, shape.width) / WIDTH)
                for layer, shape in shapes.items()
            },
            1.0,
        )
        for name in ("dog", "cat")
    ]
    halves = [regions.Region(name, regions.Box(left, 0, left + 0.5, 1)) for name, left in (("dog", 0.0), ("cat", 0.5))]
    rows = torch.zeros(3, 2, TOKENS, 2)
    rows[0, 1, 2, 0] = rows[0, 1, 4, 1] = rows[1, 1, 2, 0] = rows[2, 1, 2, 1] = 1
    made = confinement.confine_rows(parts, confinement.texts_of(("", "dog cat"), halves), rows, halves)
    sides = []
    for side in (1, 0):
        ((text, values),) = prompt()
        values["model_conds"] = {
            **notes.rows_cond("", made.text[0, side]),
            notes.REGIONAL_TEXTS: conds.CONDRegular(torch.randn(1, 2, TOKENS, WIDTH)),
            notes.REGIONAL_ROWS: conds.CONDRegular(made.text[None, 1:, side]),
        }
        sides.append([[text, values]])
    return pack("nodes.host.confined").confine_model(model, made, [], "", ""), *sides


def prompt() -> list:
    return [[torch.randn(1, TOKENS, WIDTH), {}]]


def seconds(model: ModelPatcher, positive: list, negative: list) -> float:
    latent = torch.zeros(1, 4, arguments.latents, arguments.latents)
    started = time.process_time()
    comfy.sample.sample(
        model, torch.randn_like(latent), 1, 7.0, "euler", "normal", positive, negative, latent, disable_pbar=True
    )
    return time.process_time() - started


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make_model()
    ways = {"plain prompt": (model, prompt(), prompt()), "two regions": with_regions(model)}
    for way in ways.values():
        seconds(*way)  # the first run allocates
    runs = {name: [] for name in ways}
    for _ in range(arguments.runs):
        for name, way in ways.items():
            runs[name].append(seconds(*way))
    for name, values in runs.items():
        print(f"{name:15}{statistics.median(values):7.2f} s   ({min(values):.2f} to {max(values):.2f})")
    plain, regional = (statistics.median(values) for values in runs.values())
    print(f"two regions take {regional / plain:.3f} times a plain prompt's time")


if __name__ == "__main__":
    main()
