"""Makes the mini base again:  python -m tests.mini.make --packages DIR --work DIR [STAGE ...]

DIR of the packages is where `npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0` was unpacked, as
`google/package` and `twitter/package`.  Every stage can be stopped and started again.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from seqlora_core.mini import FOLDER

from . import base, evaluate, export, identity, pool, tokenizer, vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for pictures and checkpoints, 2 GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=list(STAGES), metavar="STAGE")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        print(f"== {stage}: {STAGES[stage].__doc__}", flush=True)
        torch.set_num_threads(args.threads)  # the stage before may have taken fewer
        STAGES[stage](args.packages, args.work)


def _pool(packages: Path, work: Path) -> None:
    """draw the training pictures"""
    pool.make_pool(packages, work)


def _vae(_: Path, work: Path) -> None:
    """train the autoencoder, and encode all pictures"""
    pixels, _scenes = pool.load_pool(work)
    vae.train_vae(pixels, work)
    vae.encode_pool(pixels, work)


def _identity(packages: Path, work: Path) -> None:
    """train the identity network"""
    identity.train_identity(packages, work)


def _base(_: Path, work: Path) -> None:
    """train UNet and text encoder"""
    tokenizer.make_tokenizer(work / "tokenizer")
    _, scenes = pool.load_pool(work)
    base.train_base(scenes, CLIPTokenizer.from_pretrained(str(work / "tokenizer")), work)


def _export(packages: Path, work: Path) -> None:
    """write what is shipped"""
    export.export(packages, work, FOLDER)


def _evaluate(_: Path, work: Path) -> None:
    """measure and draw the base's quality"""
    print(json.dumps(evaluate.evaluate(export.make_pipeline(work), work), indent=1))


STAGES = {
    "pool": _pool,
    "vae": _vae,
    "identity": _identity,
    "base": _base,
    "export": _export,
    "evaluate": _evaluate,
}


if __name__ == "__main__":
    main()
