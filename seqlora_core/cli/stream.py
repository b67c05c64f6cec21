"""`train --stream`: learn a list of concepts one after another, and go on where a stopped run left off."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches

from ..bank import Bank
from ..bank.names import check_new_words, fold
from ..data.encoding import source_fingerprint
from ..data.listing import counted
from ..data.stream import Entry, Stream, read_stream
from ..devices import best_dtype, resolve_device
from ..errors import Cancelled, TrainingDiverged, TrainingExploded, UserError
from ..model.base import Base
from ..training.config import OLD_NAMES, TrainingConfig
from ..training.distributed import ALONE, Processes
from ..training.plan import already_trained
from ..training.token_embedding import check_names_word
from ..training.trainer import RunOptions
from .options import BaseOptions
from .request import Request, describe_learned
from .terminal import TerminalMonitor

# The base is loaded once, in one precision.
_OF_THE_LIST = ("dtype",)
_OF_AN_ENTRY = ("name", "images", "class_word", "token", "prior_images", *OLD_NAMES)
_FLAGS = tuple(entry.name for entry in fields(TrainingConfig) if entry.type is bool)
_OPTIONS = {*_OF_AN_ENTRY, *(entry.name for entry in fields(TrainingConfig))} - {*_OF_THE_LIST}


def learn_stream(args: argparse.Namespace, command: argparse.ArgumentParser, processes: Processes) -> None:
    """Check all entries, then learn those that the bank does not have yet.

    Args:
        args: the values of `train`'s options.
        command: the parser of these options, which reads those of an entry, too.
        processes: those that train every concept together.

    Raises:
        UserError: an entry has a mistake; the message names it, and nothing was trained.
        Cancelled, TrainingDiverged: as for one concept; what was learned before is in the bank.
    """
    monitor = TerminalMonitor(hidden=not processes.is_first)
    stream, requests = _read(args, command, processes)
    for note in stream.notes:
        monitor.message(note)
    dtype = args.dtype or best_dtype(resolve_device(args.device))
    monitor.stage(f"loading {args.base}")
    base = BaseOptions(args.base, args.device, args.tokenizer).load(dtype)
    bank = Bank.open(args.bank) if Bank.exists(args.bank) else None
    if bank is not None:
        bank.check_base(base.identity)
    left = _not_learned(requests, base, dtype, bank, args.on_existing, monitor)
    with processes.after_the_first():
        bank = Bank.open_or_create(args.bank, base.identity, base.layers)
    options = RunOptions(
        resume=True,
        restart_if_changed=True,
        replace=args.on_existing == "replace",
        store_anyway=args.store_anyway,
        checkpoint_seconds=args.checkpoint_seconds,
        processes=processes,
    )
    for entry, request in left:
        monitor.message(f"Concept {entry.place} of {len(stream)}: {request.spec.name}")
        _learn(entry, request.continuing(args.bank), base, dtype, bank, options)
    if processes.is_first:
        print(f"{stream.path}: {len(stream)} of {len(stream)} concepts are in {bank.folder}, {len(left)} of them new.")


def check_stream(args: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """Check what a list says and its images, for one that is learned only after another.

    Raises:
        UserError: the list or one of its entries has a mistake.
    """
    for entry, request in _read(args, command, ALONE)[1]:
        with _naming(entry):
            request.read()


def _read(
    args: argparse.Namespace, command: argparse.ArgumentParser, processes: Processes
) -> tuple[Stream, list[tuple[Entry, Request]]]:
    """Read the list, and what each of its entries asks for."""
    stream = read_stream(args.stream, args.first)
    requests = [(entry, _request(entry, args, command).shared_by(processes.count)) for entry in stream]
    _check_names(requests)
    return stream, requests


def _learn(
    entry: Entry,
    request: Request,
    base: Base,
    dtype: str,
    bank: Bank,
    options: RunOptions,
) -> None:
    monitor = TerminalMonitor(not options.processes.is_first)  # of its own, as it remembers where a run was stopped
    try:
        concept = request.train(base, dtype, bank, request.read(), monitor, options)
    except Cancelled as stop:
        raise Cancelled(f"in entry {entry.place} ({request.spec.name}) {monitor.stopped_at}") from stop
    except UserError as error:
        raise UserError(f"{entry}: {error}") from error
    except TrainingExploded as error:
        raise TrainingExploded(f"{entry}: {error} To store it as it is, add --store-anyway.") from error
    except TrainingDiverged as error:
        raise TrainingDiverged(f"{entry}: {error}") from error
    if options.processes.is_first:
        print(describe_learned(bank, concept), flush=True)


@contextmanager
def _naming(entry: Entry) -> Iterator[None]:
    """Put the entry's name in front of what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{entry}: {error}") from error


def _request(entry: Entry, args: argparse.Namespace, command: argparse.ArgumentParser) -> Request:
    """Read an entry as if its values were options that follow the command's own."""
    with _naming(entry):
        arguments, off = ["--base", args.base, "--bank", args.bank], {}
        for old, new in OLD_NAMES.items():
            if {old, new} <= entry.values.keys():
                raise UserError(f"{old} is the former name of {new}: take one of them out.")
        for key, value in entry.values.items():
            if key == "prompts":  # of evaluate
                continue
            _check_key(key)
            if key in _FLAGS:
                if not isinstance(value, bool):
                    raise UserError(f"{key} is true or false, not {value!r}.")
                off |= {} if value else {key: False}
                arguments += [f"--{key.replace('_', '-')}"] if value else []
            elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
                arguments.append(f"--{key.replace('_', '-')}={value}")
            else:
                raise UserError(f"{key} must be a number or a text, not {value!r}: correct it, or leave it out.")
        own = command.parse_args(arguments, argparse.Namespace(**{**vars(args), "bank": None}))
        if own.class_word is None:
            raise UserError("It has no class_word: give it one, such as dog.")
        return Request.parse(argparse.Namespace(**{**vars(own), **off}))


def _check_key(key: str) -> None:
    if key in _OPTIONS:
        return
    if key in _OF_THE_LIST:
        raise UserError(f"{key} is the same for the whole list: take it out, and give --{key}.")
    similar = get_close_matches(key, _OPTIONS, 1)
    advice = f"did you mean {similar[0]}?" if similar else "take it out."
    raise UserError(f"There is no setting {key!r} of a concept: {advice}")


def _check_names(requests: list[tuple[Entry, Request]]) -> None:
    """Raises UserError where two entries have one name or one token, or a token cannot be used."""
    names: dict[str, Entry] = {}
    tokens: dict[str, Entry] = {}
    for entry, request in requests:
        spec = request.spec
        with _naming(entry):
            if other := names.get(fold(spec.name)):
                raise UserError(f"Entry {other.place} has the name {other.name!r}, too: give each a name of its own.")
            if other := tokens.get(fold(spec.token)):
                raise UserError(f"Entry {other.place} has the token {spec.token!r}, too: give each one of its own.")
            check_new_words(spec.token, spec.class_word)
        names[fold(spec.name)] = tokens[fold(spec.token)] = entry


def _not_learned(
    requests: list[tuple[Entry, Request]],
    base: Base,
    dtype: str,
    bank: Bank | None,
    on_existing: str,
    monitor: TerminalMonitor,
) -> list[tuple[Entry, Request]]:
    """Check the images of all entries, and return those that are left to learn."""
    left = []
    for number, (entry, request) in enumerate(requests, start=1):
        monitor.stage(f"checking the images of {counted(len(requests), 'concept')}", number, len(requests))
        with _naming(entry), monitor.watching():
            monitor.stop_if_cancelled()
            references, prior = request.read()
            config = request.resolve(base, dtype, references)
            if config.learns_word:
                check_names_word((prompt for image in references for prompt in image.prompts), request.spec.token)
            existing = bank.manifest.find(request.spec.name) if bank is not None else None
            if existing is None:
                if bank is not None:
                    bank.check_words(request.spec)
            elif already_trained(bank, request.spec, config, source_fingerprint(base, references, prior)):
                continue
            elif on_existing == "skip":
                monitor.message(f"{entry}: the bank has another concept of that name, which is left as it is.")
                continue
            elif on_existing == "error":
                raise UserError(
                    f"The bank already has a concept {existing.name!r} of other images or settings: choose another "
                    "name, or give --on-existing replace to train it again, or --on-existing skip to leave it as it is."
                )
        left.append((entry, request))
    if len(left) < len(requests):
        monitor.message(f"{len(requests) - len(left)} of {len(requests)} concepts are in the bank already.")
    return left
