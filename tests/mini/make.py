"""Makes the mini base again:  python -m tests.mini.make --packages DIR --work DIR [STAGE ...]

DIR of the packages is where `npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0` was unpacked, as
`google/package` and `twitter/package`.  Every stage can be stopped and started again.  With `--start DIR` the weights
of a mini folder (seqlora_core/mini, as of some commit) take the place of the stages pool, vae, identity and base.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from seqlora_core.mini import FOLDER

from . import evaluate, export, identity, vae
from .base import CYCLES, train_base
from .export import adopt
from .pool import ARRANGED, FIRST, load_pool, make_pool
from .tokenizer import make_tokenizer


@dataclass(frozen=True)
class Site:
    """Where things are, and what computes."""

    packages: Path
    work: Path
    device: torch.device
    start: Path | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for pictures and checkpoints, 3 GB")
    parser.add_argument("--start", type=Path, metavar="DIR", help="a mini folder to go on from")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default), cuda, ...")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=[], metavar="STAGE")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    site = Site(args.packages, args.work, args.device, args.start)
    if args.start:
        adopt(args.start, args.work)
    for stage in args.stages or [name for name in STAGES if not (args.start and name in REPLACED)]:
        print(f"== {stage}: {STAGES[stage].__doc__}", flush=True)
        torch.set_num_threads(args.threads)  # the stage before may have taken fewer
        STAGES[stage](site)


def _pool(site: Site) -> None:
    """draw the training pictures"""
    make_pool(FIRST, site.packages, site.work)


def _vae(site: Site) -> None:
    """train the autoencoder, and encode all pictures"""
    pixels, _ = load_pool(FIRST, site.work)
    vae.train_vae(pixels, site.work, site.device)
    vae.encode_pool(pixels, FIRST, site.work, site.device)
    vae.write_scaling_factor(FIRST, site.work)


def _identity(site: Site) -> None:
    """train the identity network"""
    identity.train_identity(site.packages, site.work, site.device)


def _base(site: Site) -> None:
    """train UNet and text encoder"""
    for number in range(1, len(CYCLES)):
        train_base(number, make_tokenizer(site.work / "tokenizer"), site.work, site.device)


def _arranged(site: Site) -> None:
    """draw and encode pictures of which half show two things"""
    make_pool(ARRANGED, site.packages, site.work)
    vae.encode_pool(load_pool(ARRANGED, site.work)[0], ARRANGED, site.work, site.device)


def _longer(site: Site) -> None:
    """train UNet and text encoder on with these"""
    train_base(len(CYCLES), make_tokenizer(site.work / "tokenizer"), site.work, site.device)


def _decoder(site: Site) -> None:
    """sharpen the autoencoder's decoder"""
    network = identity.load_trained_identity(site.work)
    vae.train_decoder(*load_pool(ARRANGED, site.work), ARRANGED, network, site.work, site.device)


def _export(site: Site) -> None:
    """write what is shipped"""
    export.export(site.packages, site.work, FOLDER)


def _evaluate(site: Site) -> None:
    """measure and draw the base's quality; with --start, draw two things beside that one's"""
    pipeline = export.make_pipeline(site.work).to(site.device)
    print(json.dumps(evaluate.evaluate(pipeline, site.packages, site.work), indent=1))
    if site.start:
        evaluate.draw_pairs([export.load_pipeline(site.start).to(site.device), pipeline], site.work)


STAGES = {
    "pool": _pool,
    "vae": _vae,
    "identity": _identity,
    "base": _base,
    "arranged": _arranged,
    "decoder": _decoder,
    "longer": _longer,
    "export": _export,
    "evaluate": _evaluate,
}
REPLACED = ("pool", "vae", "identity", "base")


if __name__ == "__main__":
    main()
