"""Seconds to plan for, inspect and compose a bank of 101 concepts at rank 4 on SD1.5's layers.

python tests/benchmarks/large_bank.py [--concepts 101]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from diffusers import UNet2DConditionModel
from filled_bank import fill

from seqlora_core.bank import Bank, BaseIdentity
from seqlora_core.bank.inspection import inspect
from seqlora_core.bank.spec import ConceptSpec
from seqlora_core.composition.concatenation import compose
from seqlora_core.model.sd15 import find_layers, layer_shapes
from seqlora_core.training.config import TrainingConfig
from seqlora_core.training.methods import resolve
from seqlora_core.training.plan import make_plan


def timed(what: str, action: Callable[[], object]) -> object:
    started = time.monotonic()
    result = action()
    print(f"{what:40}{time.monotonic() - started:8.2f} s", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=101)
    arguments = parser.parse_args()
    with torch.device("meta"):
        layers = find_layers(UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank.open_or_create(folder, BaseIdentity("shapes", "0"), layer_shapes(layers))
        timed(f"add {arguments.concepts} concepts", lambda: fill(bank, arguments.concepts))
        timed("open and read all files", lambda: Bank.open(folder).load())
        spec, requested = ConceptSpec("next", "n", "thing"), TrainingConfig(layers="all")
        config = resolve(requested, native_size=512, dtype="float32")
        plan = timed("plan the next training run", lambda: make_plan(bank, spec, requested, config, layers))
        result = timed("inspect", lambda: inspect(bank))
        timed("compose all", lambda: compose(bank, [(concept.name, 1.0) for concept in bank.concepts]))
        print(f"{len(plan.full)} of {len(layers)} layers are full; largest overlap {result.max_overlap:.1e}")


if __name__ == "__main__":
    main()
