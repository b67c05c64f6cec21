"""How long a bank of 101 concepts at rank 4 on SD1.5's layers takes to plan for, inspect and compose.

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

from seqlora_core.bank import Bank, BaseIdentity, NewConcept
from seqlora_core.bank.inspection import inspect
from seqlora_core.composition import compose
from seqlora_core.config import TrainingConfig
from seqlora_core.layers import Adapter, find_layers, layer_shapes
from seqlora_core.plan import ConceptSpec, make_plan

RANK = 4


def fill(bank: Bank, count: int) -> None:
    """Concepts whose bases are columns of one random orthogonal matrix a layer, until the layer is full."""
    generator = torch.Generator().manual_seed(0)
    columns = {
        width: torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
        for width in {shape.width for shape in bank.manifest.layers.values()}
    }
    for index in range(count):
        taken = slice(index * RANK, (index + 1) * RANK)
        adapters = {
            layer: Adapter(torch.randn(shape.out, RANK, generator=generator) / 100, columns[shape.width][:, taken])
            for layer, shape in bank.manifest.layers.items()
            if taken.stop <= shape.width
        }
        bank.add(NewConcept(f"concept {index}", f"sks{index}", "thing", RANK, "seqlora", adapters))


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
        plan = timed(
            "plan the next training",
            lambda: make_plan(bank, ConceptSpec("next", "n", "thing"), TrainingConfig(), layers),
        )
        result = timed("inspect", lambda: inspect(bank))
        timed("compose all", lambda: compose(bank, [(concept.name, 1.0) for concept in bank.concepts]))
        print(f"{len(plan.full)} of {len(layers)} layers are full; largest overlap {result.max_overlap:.1e}")


if __name__ == "__main__":
    main()
