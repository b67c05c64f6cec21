"""The command line: `python -m seqlora_core COMMAND`.

Exit status: 0 on success, 2 for the user's mistakes (one line on stderr), 130 when interrupted, 1 otherwise.
"""

import argparse
import io
import logging
import math
import os
import sys
from collections.abc import Sequence

import torch

from ..composition.fusion import FUSIONS, FusionSettings
from ..data.prompts import SUBJECT_TEMPLATE
from ..errors import Cancelled, TrainingDiverged, UserError
from ..training.config import DTYPES, LARGEST_SEED
from . import commands
from .settings import add_settings

_EXTRA = ("diffusers", "transformers")  # which the nodes do without
_OutOfMemory = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)  # the name moved in torch 2.5
# What takes less of a graphics card's memory, by the option that a command may have.
_LESS_MEMORY = {
    "gradient_checkpointing": "--gradient-checkpointing",
    "batch_size": "a smaller --batch-size",
    "resolution": "a smaller --resolution",
    "size": "a smaller --size",
    "dtype": "--dtype bfloat16 or float16",
    "device": "--device cpu",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file on Windows holds few letters, and concepts have any
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = _parser().parse_args(arguments)
        args.run(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRA:
            raise
        print(f'error: This needs the package {package}: python -m pip install -e ".[cli]"', file=sys.stderr)
        return 2
    except Cancelled:
        resumable = "; the same command with --resume continues" if hasattr(args, "resume") else ""
        print(f"Stopped{resumable}.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except _OutOfMemory:
        remedies = ", ".join(remedy for option, remedy in _LESS_MEMORY.items() if hasattr(args, option))
        print(f"error: The graphics card has too little memory for this: try {remedies}.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m seqlora_core", description="Learn concepts one after another, and sum any subset.")
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(subcommands.add_parser("demo", help="see it at work on a small base that is shipped"))
    _add_train(subcommands.add_parser("train", help="learn one concept from a folder of images"))

    listing = subcommands.add_parser("list", help="show the concepts of a bank")
    inspecting = subcommands.add_parser("inspect", help="orthogonality, free capacity and integrity of a bank")
    for command, run in ((listing, commands.list_concepts), (inspecting, commands.inspect_bank)):
        _add_bank(command)
        command.add_argument("--json", action="store_true", help="print one JSON document")
        command.set_defaults(run=run)
    _add_base(inspecting, required=False)
    inspecting.add_argument("--plot", metavar="PNG", help="draw the interference that is measured on --base")
    _add_sampling(inspecting)

    _add_compose(subcommands.add_parser("compose", help="make one LoRA file of several concepts"))
    _add_generate(subcommands.add_parser("generate", help="make a picture, with or without concepts"))

    _add_import(subcommands.add_parser("import", help="take any SD1.5 LoRA file into a bank"))
    _add_evaluate(subcommands.add_parser("evaluate", help="fidelity of every concept, and what is forgotten"))

    removing = subcommands.add_parser("remove", help="take a concept out of a bank")
    renaming = subcommands.add_parser("rename", help="give a concept another name")
    for command, run in ((removing, commands.remove_concept), (renaming, commands.rename_concept)):
        _add_bank(command)
        command.add_argument("--name", required=True)
        command.set_defaults(run=run)
    renaming.add_argument("--to", required=True, metavar="NEW_NAME")
    return parser


def _add_demo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, metavar="DIR", help="for the pictures, the report and the bank")
    command.add_argument("--concepts", type=_count, default=4, metavar="N", help="how many are learned (default: 4)")
    command.add_argument("--seed", type=_seed, default=0)
    command.set_defaults(run=commands.demo)


def _add_train(command: argparse.ArgumentParser) -> None:
    _add_base(command)
    _add_bank(command)
    command.add_argument("--name", required=True, help="of the concept, in the bank")
    command.add_argument("--images", required=True, metavar="DIR", help="reference images, with captions or without")
    command.add_argument("--class-word", required=True, metavar="WORD", help="what the concept is, such as dog")
    command.add_argument("--token", help="word that will mean the concept (default: made from the name)")
    command.add_argument("--prior-images", metavar="DIR", help="other images of the class, for prior preservation")
    command.add_argument("--resume", action="store_true", help="continue where a stopped training was")
    command.add_argument("--on-existing", choices=("error", "skip", "replace"), default="error")
    command.add_argument("--checkpoint-seconds", type=_positive, default=60.0, metavar="SECONDS")
    add_settings(command)
    command.set_defaults(run=commands.train)


def _add_compose(command: argparse.ArgumentParser) -> None:
    _add_base(command, required=False)
    _add_bank(command)
    _add_concepts(command, required=True)
    command.add_argument("--out", required=True, metavar="FILE.safetensors")
    command.add_argument(
        "--fusion", choices=tuple(FUSIONS), default="sum", help="how; all but the first two need --base (default: sum)"
    )
    command.add_argument("--rank", type=_count, metavar="N", help="cut the file to that rank (default: no cut)")
    _add_sampling(command)
    command.set_defaults(run=commands.compose_concepts)


def _add_sampling(command: argparse.ArgumentParser) -> None:
    defaults = FusionSettings()
    command.add_argument("--seed", type=_seed, default=defaults.seed, help="of the pictures sampled to watch the base")
    command.add_argument(
        "--sampling-steps",
        type=_count,
        default=defaults.sampling_steps,
        metavar="N",
        help=f"of each of them (default: {defaults.sampling_steps})",
    )


def _add_generate(command: argparse.ArgumentParser) -> None:
    _add_base(command)
    _add_bank(command, required=False)
    _add_concepts(command, required=False)
    command.add_argument("--lora", metavar="FILE.safetensors", help="a file that compose wrote")
    command.add_argument("--prompt", required=True)
    command.add_argument("--negative-prompt", default="")
    command.add_argument("--out", required=True, metavar="PNG")
    command.add_argument("--seed", type=_seed, default=0)
    command.add_argument("--steps", type=_count, default=30, help="of the sampler (default: 30)")
    command.add_argument("--size", type=_count, metavar="PX", help="of the square picture (default: the base's own)")
    command.add_argument("--guidance", type=float, default=7.5, help="classifier-free guidance (default: 7.5)")
    command.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    command.set_defaults(run=commands.generate_picture)


def _add_import(command: argparse.ArgumentParser) -> None:
    _add_bank(command)
    command.add_argument("--file", required=True, metavar="FILE.safetensors", help="a LoRA of any tool")
    command.add_argument("--name", required=True, help="of the concept, in the bank")
    command.add_argument("--class-word", required=True, metavar="WORD", help="what the concept is, such as dog")
    command.add_argument("--token", help="the word that the LoRA was trained with (default: made from the name)")
    command.add_argument(
        "--project", action="store_true", help="keep only what is orthogonal to the bank's concepts, and say how much"
    )
    command.add_argument("--on-existing", choices=("error", "replace"), default="error")
    _add_base(command, required=False)
    command.set_defaults(run=commands.import_concept)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    _add_base(command)
    _add_bank(command)
    command.add_argument("--out", required=True, metavar="DIR", help="for pictures, tables and plots; taken up again")
    command.add_argument("--references", metavar="DIR", help="holds a folder of pictures a concept, named like it")
    command.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME[=FOLDER]",
        help="identity (the mini base's), or clip-i, clip-t, dino, dinov2 with a local transformers folder",
    )
    command.add_argument("--trajectory", action="store_true", help="score all concepts after every stage (Figure 3b)")
    command.add_argument("--images", type=_count, default=16, metavar="N", help="a concept and stage (default: 16)")
    command.add_argument("--prompt", default=SUBJECT_TEMPLATE, help="with {} for the token and class word")
    command.add_argument("--seed", type=_seed, default=0)
    command.add_argument("--steps", type=_count, default=30, help="of the sampler (default: 30)")
    command.add_argument("--size", type=_count, metavar="PX", help="of the square pictures (default: the base's own)")
    command.add_argument("--guidance", type=float, default=7.5, help="classifier-free guidance (default: 7.5)")
    command.set_defaults(run=commands.evaluate_bank)


def _add_base(command: argparse.ArgumentParser, required: bool = True) -> None:
    known = "mini, a .safetensors checkpoint of SD1.5, or a diffusers folder"
    command.add_argument("--base", required=required, help=known)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    command.add_argument("--tokenizer", metavar="DIR", help="CLIP's tokenizer, for checkpoints on machines offline")


def _add_bank(command: argparse.ArgumentParser, required: bool = True) -> None:
    command.add_argument("--bank", required=required, metavar="DIR", help="the bank's folder")


def _add_concepts(command: argparse.ArgumentParser, required: bool) -> None:
    command.add_argument(
        "--concept", action="append", default=[], required=required, metavar="NAME[:STRENGTH]", help="once a concept"
    )


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"must be between 0 and {LARGEST_SEED}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError("must be above 0")
    return value
