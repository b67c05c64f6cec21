"""The command line: `python -m seqlora_core COMMAND`.

Exit status: 0 on success, 2 for a usage error (one line on stderr says how to fix it), 130 when interrupted, 1
otherwise.  The arguments of each command are in the file of its action.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from ..devices import OutOfMemory
from ..errors import Cancelled, EndedTogether, TrainingDiverged, UserError
from .bank import add_import, add_inspect, add_list, add_remove, add_rename
from .compose import add_compose, add_generate
from .demo import add_demo
from .evaluate import add_evaluate
from .train import add_train

_EXTRA = ("diffusers", "transformers")  # not needed by the nodes
# How to use less memory, by the option that a command must have for it.
_LESS_MEMORY = {
    "gradient_checkpointing": "--gradient-checkpointing",
    "batch_size": "a smaller --batch-size",
    "resolution": "a smaller --resolution",
    "size": "a smaller --size",
}
_LESS_MEMORY_ON_CARDS = {
    **_LESS_MEMORY,
    "dtype": "--dtype bfloat16 or float16",
    "device": "--device cpu",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        if message.endswith("expected one argument"):
            message += "; where it begins with '-', write OPTION=VALUE"
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a redirected stream on Windows may lack a concept's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = make_parser().parse_args(arguments)
        args.run(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader, such as `head`, has stopped; Python would complain again at exit
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
    except Cancelled as stop:
        how = "" if getattr(args, "stream", None) else " with --resume"
        resumable = f"; the same command{how} continues" if hasattr(args, "resume") else ""
        where = f" {stop}" if str(stop) else ""
        print(f"Stopped{where}{resumable}.", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        return 130
    except EndedTogether:
        return 1
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemory):
            where, options, others = "graphics card", _LESS_MEMORY_ON_CARDS, []
        elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            where, options, others = "computer", _LESS_MEMORY, ["closing other programs"]
        else:
            raise
        remedies = [*(remedy for option, remedy in options.items() if hasattr(args, option)), *others]
        print(f"error: The {where} has too little memory for this: try {', '.join(remedies)}.", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; the parsed arguments have the command's action as `run`."""
    parser = _Parser(prog="python -m seqlora_core", description="Learn concepts one after another, and sum any subset.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_demo(commands)
    add_train(commands)
    add_list(commands)
    add_inspect(commands)
    add_compose(commands)
    add_generate(commands)
    add_import(commands)
    add_evaluate(commands)
    add_remove(commands)
    add_rename(commands)
    return parser
