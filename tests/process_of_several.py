"""One of several processes that train together; `python process_of_several.py BANK SCRATCH` is one after the first."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_base
from training_runs import StopAfter, captioned, resolved, spec

from seqlora_core import files
from seqlora_core.bank import Bank
from seqlora_core.model.denoiser import DiffusersDenoiser
from seqlora_core.model.sd15 import sd15_alphas_cumprod
from seqlora_core.model.text_encoder import CLIPTextEncoder
from seqlora_core.monitor import Monitor
from seqlora_core.training.distributed import Processes
from seqlora_core.training.run_options import RunOptions
from seqlora_core.training.trainer import train_concept

# The contrastive start is made of eigenvectors, which magnify the rounding of the word a thousand times.
START = {"init": "random", "coordinates": "plain"}
# Adam would magnify the rounding of a gradient that is nearly 0.
STEPS = {"optimizer": "gradient", "lr_coefficients": 1.0, "lr_basis": 1.0, "steps": 4}
SETTINGS = {"batch_size": 2, "token_vectors": 2, "token_share": 0.5, "layers": "cross", **START, **STEPS}


def base(scratch: Path) -> tuple[DiffusersDenoiser, CLIPTextEncoder]:
    """The UNet of the fixtures, and a text encoder of its width."""
    denoiser = DiffusersDenoiser(tiny_base.make_unet((32, 64), 1, 32), sd15_alphas_cumprod())
    tokenizer = tiny_base.make_tokenizer(scratch)
    return denoiser, CLIPTextEncoder(tokenizer, tiny_base.make_text_encoder(tokenizer, 32))


def train(denoiser, encoder, bank: Bank, name: str, monitor: Monitor, processes: Processes) -> None:
    """Train one concept with `SETTINGS`."""
    options = RunOptions(checkpoint_seconds=1e-9, processes=processes)
    encode = captioned(encoder, spec(name), sum(map(ord, name)))
    train_concept(denoiser, encode, bank, spec(name), resolved(**SETTINGS), monitor, options, text_encoder=encoder)


def run(denoiser, encoder, bank: Bank) -> None:
    """Train "second", then "third", which fails after one step in every process but the first."""
    processes = Processes.launched()
    with processes.together("cpu"):
        train(denoiser, encoder, bank, "second", Monitor(), processes)
        failing = Monitor() if processes.is_first else StopAfter(1, OSError("its card is gone"))
        train(denoiser, encoder, bank, "third", failing, processes)


def _refuse(path: Path, content: bytes) -> None:
    raise AssertionError(f"{path} is written by a process that is not the first")


if __name__ == "__main__":
    files.write_atomically = _refuse
    run(*base(Path(sys.argv[2])), Bank.open(sys.argv[1]))
