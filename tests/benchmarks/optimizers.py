"""Held-out denoising loss at equal forward-backward passes: plain gradient steps against projected Adam.

    python tests/benchmarks/optimizers.py --photos DIR [--passes 180] [--subjects dog cat backpack]

On the reduced-width base with random weights that the tests use.  Each subject's last photo is held out; a subject is
trained in a bank of its own without protected prompts, so that the figures differ by the optimizer only.  Both learning
rates are equal.  All layers are trained, and the lower step is repeated (eq. 18).
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_base  # noqa: E402

from seqlora_core.bank import Bank  # noqa: E402
from seqlora_core.bank.spec import ConceptSpec  # noqa: E402
from seqlora_core.data.encoding import encode_concept  # noqa: E402
from seqlora_core.data.reference_folder import read_folder  # noqa: E402
from seqlora_core.errors import TrainingDiverged  # noqa: E402
from seqlora_core.model.adapters import attach  # noqa: E402
from seqlora_core.model.base import Base, load_base  # noqa: E402
from seqlora_core.model.sd15 import find_layers  # noqa: E402
from seqlora_core.training.config import TrainingConfig  # noqa: E402
from seqlora_core.training.methods import resolve  # noqa: E402
from seqlora_core.training.objective import heldout_loss  # noqa: E402
from seqlora_core.training.trainer import train_concept  # noqa: E402

PASSES = {"seqlora": 3, "alternating": 2, "lora": 1}  # per iteration
LEARNING_RATES = {"adam": (3e-4, 1e-3, 3e-3, 1e-2), "gradient": (0.1, 1.0, 10.0)}
HELDOUT_STEPS = 40


def heldout_after(base: Base, photos: Path, subject: str, passes: int, **settings) -> tuple[float, float]:
    """Measure the held-out loss before and after training one subject."""
    references = read_folder(photos / subject, f"sks{subject} {subject}")
    steps = passes // PASSES[settings["method"]]
    config = resolve(TrainingConfig(steps=steps, token_vectors=0, **settings), native_size=128, dtype="float32")
    train = encode_concept(base, references[:-1], config.resolution)
    held = encode_concept(base, references[-1:], config.resolution)
    denoiser = base.denoiser()
    before = heldout_loss(denoiser, held, config, HELDOUT_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank.open_or_create(folder, base.identity, base.layers)
        try:
            spec = ConceptSpec(subject, f"sks{subject}", subject)
            train_concept(denoiser, lambda prompts, words: train, bank, spec, config)
        except TrainingDiverged:
            return before, float("nan")
        with attach(find_layers(base.pipeline.unet), bank.load()[subject]):
            return before, heldout_loss(denoiser, held, config, HELDOUT_STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=180)
    parser.add_argument("--subjects", nargs="+", default=["dog", "cat", "backpack"])
    arguments = parser.parse_args()
    print(f"{arguments.passes} passes, held-out loss (mean of {', '.join(arguments.subjects)})")
    print(f"{'method':12}{'optimizer':>10}{'rate':>11}{'before':>9}{'after':>9}")
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(str(tiny_base.save_folder(Path(folder) / "base")))
    for method in PASSES:
        for optimizer, rates in LEARNING_RATES.items():
            for rate in rates:
                settings = {"method": method, "optimizer": optimizer, "lr_coefficients": rate, "lr_basis": rate}
                settings |= {"layers": "all", "lower_step": "repeat"}
                losses = [
                    heldout_after(base, arguments.photos, s, arguments.passes, **settings) for s in arguments.subjects
                ]
                before, after = (sum(column) / len(column) for column in zip(*losses, strict=True))
                print(f"{method:12}{optimizer:>10}{rate:11.0e}{before:9.4f}{after:9.4f}", flush=True)


if __name__ == "__main__":
    main()
