"""The command `train`: learn one concept from a folder of images, or a list of concepts."""

import argparse
import os

from ..bank import Bank
from ..devices import best_dtype, resolve_device
from ..errors import Cancelled, TrainingExploded
from ..training.distributed import ALONE, Processes
from ..training.run_options import CHECKPOINT_SECONDS, RunOptions
from .options import BaseOptions, add_bank, add_base, add_device, add_words, count, location, positive
from .request import Request, describe_learned
from .settings import add_settings
from .stream import check_stream, learn_stream
from .terminal import TerminalMonitor

_WAYS_OUT = (
    "choose another --name, or give --on-existing replace to train it again, or --on-existing skip to leave it as it is"
)
_OF_ONE = ("name", "images", "class_word")


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="learn one concept from a folder of images, or a list of concepts",
        description="Learn one concept from a folder of images, or a list of concepts, and add them to the bank.",
        usage="%(prog)s --base BASE --bank DIR (--name NAME --images DIR --class-word WORD | --stream FILE) [options]",
    )
    what = command.add_argument_group("what to train")
    add_base(what, purpose="to train on")
    add_bank(what, text="folder of the bank, created if it does not exist; one per --stream", action="append")
    add_words(what, token="word that stands for the concept in prompts", required=False)
    what.add_argument(
        "--images", type=location, metavar="DIR", help="folder of reference images, with or without captions"
    )
    what.add_argument(
        "--prior-images",
        type=location,
        metavar="DIR",
        help="folder of other images of the class, for prior preservation",
    )
    what.add_argument(
        "--stream",
        type=location,
        metavar="FILE",
        action="append",
        help="JSON or YAML list with one entry per concept: name, images, class_word, and any other of these options "
        "without --, which then counts for that concept; the same command goes on where it was stopped; "
        "repeat it, each time with a --bank, for lists that several processes learn side by side",
    )
    what.add_argument("--first", type=count, metavar="N", help="learn only the first N concepts of --stream")
    what.add_argument(
        "--on-existing",
        choices=("error", "skip", "replace"),
        default="error",
        help="what to do if the bank already has a concept of that name (default: error)",
    )
    what.add_argument("--resume", action="store_true", help="continue an interrupted training run of this concept")
    what.add_argument(
        "--store-anyway", action="store_true", help="store the concept even if the loss ended far above where it began"
    )
    basics = command.add_argument_group("basics")
    resources = command.add_argument_group("speed and memory")
    add_device(resources)
    method = command.add_argument_group("method (defaults are fine)")
    add_settings(
        basics, resources, method, command.add_argument_group("captions, images, loss and learning rates (off)")
    )
    resources.add_argument(
        "--checkpoint-seconds",
        type=positive,
        default=CHECKPOINT_SECONDS,
        metavar="SECONDS",
        help=f"seconds between checkpoints (default: {CHECKPOINT_SECONDS:g})",
    )
    command.set_defaults(run=lambda args: _run(args, command))


def _run(args: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    processes = Processes.launched()
    args.device = processes.device(args.device)
    streams, banks = args.stream or [None], args.bank
    if len(streams) > 1 or len(banks) > 1:
        _check_streams(streams, banks, processes, command)
        pairs = list(zip(streams, banks, strict=True))[processes.rank :: processes.count]
        lists = [argparse.Namespace(**{**vars(args), "stream": stream, "bank": bank}) for stream, bank in pairs]
        for later in lists[1:]:
            check_stream(later, command)
        for one in lists:
            _train(one, command, ALONE)
        return
    args.stream, args.bank = streams[0], banks[0]
    with processes.together(args.device):
        _train(args, command, processes)


def _check_streams(streams: list, banks: list[str], processes: Processes, command: argparse.ArgumentParser) -> None:
    """Check that there is a bank for each list, and a list for each process."""
    if len({os.path.realpath(bank) for bank in banks}) < len(streams) or len(banks) != len(streams):
        command.error("give one --bank for each --stream, all different")
    if len(streams) < processes.count:
        command.error(f"{processes.count} processes have {len(streams)} lists: start as many as there are lists")


def _train(args: argparse.Namespace, command: argparse.ArgumentParser, processes: Processes) -> None:
    if args.stream is not None:
        given = [f"--{name.replace('_', '-')}" for name in (*_OF_ONE, "token") if getattr(args, name) is not None]
        if given:
            command.error(f"{given[0]} is for one concept: put it into the entries of --stream")
        learn_stream(args, command, processes)
        return
    missing = [f"--{name.replace('_', '-')}" for name in _OF_ONE if getattr(args, name) is None]
    if missing:
        command.error(f"the following arguments are required: {', '.join(missing)}, or --stream")
    if args.first is not None:
        command.error("--first counts concepts of a list: give --stream, too")
    _learn_one(args, processes)


def _learn_one(args: argparse.Namespace, processes: Processes) -> None:
    monitor = TerminalMonitor(hidden=not processes.is_first)
    request = Request.parse(args).shared_by(processes.count)
    if Bank.exists(args.bank):
        bank = Bank.open(args.bank)
        if args.on_existing == "skip" and (existing := bank.manifest.find(request.spec.name)):
            if processes.is_first:
                print(f"The bank already has a concept {existing.name!r}; nothing to do.")
            return
        if args.on_existing == "error":
            bank.require_free(request.spec.name, _WAYS_OUT)
    if args.resume:
        request = request.continuing(args.bank)
    dtype = request.config.dtype or best_dtype(resolve_device(args.device))
    folders = request.read()
    monitor.stage(f"loading {args.base}")
    base = BaseOptions(args.base, args.device, args.tokenizer).load(dtype)
    request.resolve(base, dtype, folders[0])
    with processes.after_the_first():
        bank = Bank.open_or_create(args.bank, base.identity, base.layers)
    options = RunOptions(
        resume=args.resume,
        replace=args.on_existing == "replace",
        store_anyway=args.store_anyway,
        checkpoint_seconds=args.checkpoint_seconds,
        processes=processes,
    )
    try:
        concept = request.train(base, dtype, bank, folders, monitor, options)
    except Cancelled as stop:
        raise Cancelled(monitor.stopped_at) from stop
    except TrainingExploded as error:
        raise TrainingExploded(f"{error} To store it as it is, add --resume --store-anyway.") from error
    if processes.is_first:
        print(describe_learned(bank, concept))
