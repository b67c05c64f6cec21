"""Kill processes that change a bank, let its disk fail, read it beside a writer, and damage its JSON and checkpoints.

Everything but a right result or one sentence (UserError) is a fault.  `attack.py` is the command.
"""

import builtins
import contextlib
import copy
import errno
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save
from small_bank import BASE, LAYERS, concept
from training_runs import StopAfter, random_concept, resolved

from seqlora_core import files as storage
from seqlora_core.bank import Bank, ConceptSpec, NewConcept
from seqlora_core.bank.importing import METHOD, describe_import
from seqlora_core.bank.inspection import inspect, least_room, missing_files
from seqlora_core.errors import UserError
from seqlora_core.training.checkpoint import Checkpoint, Expected, resumable_checkpoint
from seqlora_core.training.plan import already_trained, full_layers
from seqlora_core.training.state import TrainingState

MOST_SECONDS = 5.0  # of processor time, of one damaged input
NAMES = ("dog", "cat", "my dog", "fox")
_CONTEXT = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")

# Changes.  A bank's expected state is the seed of every concept by name; the token says which seed a concept has.

State = dict[str, int]


def new_concept(name: str, seed: int) -> NewConcept:
    """The concept of a seed; every other seed's has a learned word."""
    return concept(name, seed, word=torch.full((2, 16), float(seed)) if seed % 2 else None, text_encoder="e" * 32)


def random_change(rng: random.Random, state: State) -> tuple[Callable[[Bank], object], State]:
    """A change that a user may make, and the state after it."""
    name, seed = rng.choice(NAMES), rng.randrange(10**6)
    if name not in state or rng.random() < 0.3:
        after = {**{other: value for other, value in state.items() if other != name}, name: seed}
        return lambda bank: bank.add(new_concept(name, seed), replace=True), after
    rest = {other: value for other, value in state.items() if other != name}
    free = [other for other in NAMES if other not in state]
    if free and rng.random() < 0.6:
        return lambda bank: bank.rename(name, free[0]), {**rest, free[0]: state[name]}
    return lambda bank: bank.remove(name), rest


def check_state(folder: Path, *allowed: State) -> State:
    """Check that a bank has all concepts of one of the allowed states, bit for bit; returns that state."""
    bank = Bank.open(folder)
    loaded, words = bank.load(), bank.words()
    state = {record.name: int(record.token.removeprefix("sks")) for record in bank.concepts}
    assert state in allowed, f"{state} is none of {allowed}"
    for name, seed in state.items():
        expected = concept(name, seed).adapters
        assert all(torch.equal(loaded[name][layer].up, expected[layer].up) for layer in LAYERS)
        assert all(torch.equal(loaded[name][layer].down, expected[layer].down) for layer in LAYERS)
        assert (f"sks{seed}" in words) == bool(seed % 2)
        assert seed % 2 == 0 or (words[f"sks{seed}"] == seed).all()
    return state


def check_no_litter(folder: Path) -> None:
    """Check that the next change deletes everything that belongs to no concept."""
    bank = Bank.open(folder)
    with mock.patch.object(storage, "_ABANDONED_SECONDS", -1.0):
        bank.add(new_concept("last", 1), replace=True)
        bank.remove("last")
    used = {file for record in bank.concepts for file in record.files}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - {".lock", ".training.lock", "bank.json"} == used, f"{found} instead of {used}"


# Kills


def _change_until_killed(folder: Path, seed: int, state: State, report) -> None:
    torch.set_num_threads(1)
    rng, bank = random.Random(seed), Bank.open(folder)
    report.send((state, state))
    while True:
        change, after = random_change(rng, state)
        report.send((state, after))
        change(bank)
        state = after
        report.send((state, state))


def kills(count: int, seed: int) -> Iterator[str]:
    """Kill processes at random moments of their changes; no concept may be lost, and nothing be left for good."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder, state = Path(place) / "bank", {}
        Bank.open_or_create(folder, BASE, LAYERS)
        for _ in range(count):
            reader, writer = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(target=_change_until_killed, args=(folder, rng.randrange(10**6), state, writer))
            process.start()
            writer.close()
            allowed = reader.recv()
            time.sleep(rng.uniform(0, 0.06))
            process.kill()
            process.join()
            with contextlib.suppress(EOFError):
                while True:
                    allowed = reader.recv()
            reader.close()
            state = check_state(folder, *allowed)
            left = {path.name for path in folder.rglob("*.tmp")}
            left |= {path.name for path in (folder / "concepts").glob("*.safetensors")} - {
                Path(record.file).name for record in Bank.open(folder).concepts
            }
            yield "killed, files left" if left else "killed"
            check_no_litter(folder)


# Faults


class _Faults:
    """Lets the k-th call of the functions that change or read files fail."""

    def __init__(self, rng: random.Random) -> None:
        self.calls, self.at = 0, rng.randrange(40)
        self.error = rng.choice((errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS, errno.EDQUOT))
        self.lasting = rng.random() < 0.3

    def failing(self, real: Callable) -> Callable:
        def call(*arguments, **more):
            self.calls += 1
            if self.calls - 1 == self.at or (self.lasting and self.calls - 1 > self.at):
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments, **more)

        return call

    def open(self, *arguments, **more):
        file = self.failing(builtins.open)(*arguments, **more)
        if "x" in str(arguments[1:]):
            file.write(b"")  # a real file, whose content may not fit on the disk
            return _FullFile(file, self)
        return file

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name in ((os, "replace"), (os, "fsync"), (os, "open"), (Path, "unlink"), (Path, "mkdir")):
                stack.enter_context(mock.patch.object(owner, name, self.failing(getattr(owner, name))))
            stack.enter_context(mock.patch.object(storage, "open", self.open, create=True))
            yield


class _FullFile:
    """A file to which half of the content is written before the disk is full."""

    def __init__(self, file, faults: _Faults) -> None:
        self._file, self._faults = file, faults

    def write(self, content: bytes) -> None:
        self._file.write(content[: len(content) // 2])
        self._faults.failing(self._file.write)(content[len(content) // 2 :])

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def faults(count: int, seed: int) -> Iterator[str]:
    """Let one or all later calls of the file system fail in a change, and compare the bank with what was reported."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder, state = Path(place) / "bank", {}
        Bank.open_or_create(folder, BASE, LAYERS)
        for _ in range(count):
            change, after = random_change(rng, state)
            bank, broken = Bank.open(folder), _Faults(rng)
            try:
                with broken.active():
                    change(bank)
                state = check_state(folder, after)
                yield "change done"
            except UserError as error:
                _check_sentence(error)
                state = check_state(folder, state)
                yield "change refused"
            check_no_litter(folder)


# Readers beside a writer


def _rename_until_killed(folder: Path) -> None:
    torch.set_num_threads(1)
    rng, bank = random.Random(0), Bank.open(folder)
    while True:
        for old, new in (("dog", "fox"), ("fox", "dog")):
            bank.rename(old, new)
            time.sleep(rng.uniform(0, 0.03))  # the lock is free for that long; who waits looks every 0.05 s


def readers(count: int, seed: int) -> Iterator[str]:
    """Report on a healthy bank beside a process that renames a concept all the time."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bank"
        bank = Bank.open_or_create(folder, BASE, LAYERS)
        imported = replace(concept("dog", seed), method=METHOD, metrics={"share": 1.0, "left_out": {}})
        records = [bank.add(imported), bank.add(concept("cat", seed + 1))]
        process = _CONTEXT.Process(target=_rename_until_killed, args=(folder,))
        process.start()
        try:
            for _ in range(count):
                result = inspect(Bank.open(folder))
                assert not result.problems, result.problems
                assert "Overlap with cat" in describe_import(bank, records[0])
                assert len(bank.load(records)) == len(records)
                yield "read"
        finally:
            process.kill()
            process.join()


# Damaged JSON

_VALUES = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2**40,
        10**30,
        float("nan"),
        float("inf"),
        "",
        "x",
        "a/b",
        "\ud800",
        "\0",
        "x" * 20000,
    ),
    *([], [0], [[[]]], {}, {"a": 1}, {"": {}}, "concepts/cat.safetensors", "../x", "concepts/..", "dog", "CAT"),
)


def _nodes(value: object, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _nodes(item, (*path, key))


def damaged_document(document: dict, rng: random.Random) -> object:
    """A copy with some values replaced, removed or moved."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 5))):
        paths = [path for path in _nodes(document) if path]
        if not paths:
            return document
        # Half of the time any place, else any depth: most places are deep.
        depth = rng.choice(sorted({len(path) for path in paths}))
        path = rng.choice([path for path in paths if len(path) == depth or rng.random() < 0.5])
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        way = rng.random()
        if way < 0.2:
            del parent[path[-1]]
        elif way < 0.3 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif way < 0.4 and isinstance(parent, dict):
            parent[rng.choice(("x", "", "\ud800", "id", "name"))] = parent.pop(path[-1])
        else:
            parent[path[-1]] = copy.deepcopy(rng.choice(_VALUES))
    return document


def damaged_text(document: dict, rng: random.Random) -> bytes:
    """The JSON of a damaged copy, or damaged JSON."""
    way = rng.random()
    if way < 0.75:
        return json.dumps(damaged_document(document, rng)).encode()
    text = bytearray(json.dumps(document).encode())
    if way < 0.82:
        return bytes(text[: rng.randrange(len(text))])
    if way < 0.87:
        return rng.choice((b"[", b'{"a":', b'{"format":')) * rng.choice((1, 500, 100_000))
    for _ in range(rng.choice((1, 3, 20))):
        text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text)


def _use(bank: Bank) -> None:
    """Whatever reads a manifest."""
    json.dumps([record.as_dict() for record in bank.concepts]).encode()
    inspect(bank).tables()
    missing_files(bank)
    if bank.manifest.layers:
        least_room(bank)
    for record in bank.concepts:
        full_layers(bank, record)
        spec = ConceptSpec(record.name, record.token, record.class_word)
        already_trained(bank, spec, resolved(), record.provenance.data)
        for action in (lambda record=record: describe_import(bank, record), lambda record=record: bank.load([record])):
            with contextlib.suppress(UserError):
                action()
    bank.add(concept("new", 5), replace=True)
    bank.rename("new", "newer")
    bank.remove("newer")


def manifests(count: int, seed: int) -> Iterator[str]:
    """Damage `bank.json`, then open the bank, report on it and change it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bank"
        bank = Bank.open_or_create(folder, BASE, LAYERS)
        facts = {"share": 0.5, "left_out": {"text": 3}, "remaining": 1.0, "least_remaining": 1.0, "alpha_known": True}
        bank.add(replace(concept("dog", 1), method=METHOD, metrics=facts))
        curve = {"first_loss": 1.0, "final_loss": 0.5, "loss_curve": [1.0, 0.5]}
        bank.add(replace(concept("cat", 2), settings=resolved().as_dict(), metrics=curve))
        files = {path: path.read_bytes() for path in (folder / "concepts").iterdir()}
        document = json.loads((folder / "bank.json").read_text("utf-8"))
        for index in range(count):
            text = damaged_text(document, rng)
            (folder / "bank.json").write_bytes(text)
            started = time.process_time()
            try:
                opened = Bank.open(folder)
            except UserError as error:
                _check_sentence(error)
                yield "bank.json refused"
            else:
                try:
                    _use(opened)
                    yield "bank.json read"
                except UserError as error:
                    _check_sentence(error)
                    yield "bank.json read, change refused"
            assert time.process_time() - started < MOST_SECONDS, f"input {index} of seed {seed} is slow"
            for path, content in files.items():
                if not path.exists() or path.read_bytes() != content:
                    path.write_bytes(content)


# Damaged checkpoints


def checkpoints(count: int, seed: int) -> Iterator[str]:
    """Damage a checkpoint, then resume from it and take a step."""
    rng, config = random.Random(seed), resolved()
    shapes = {"first": (8, 16, 16), "second": (4, 6, 6)}
    state = _begun(config, shapes)
    for _ in range(2):
        _step(state)
    data, identity = random_concept(0), {"base model": "x", "data": "y", "concept": ["a"]}
    good = Checkpoint(2, config, identity, state.losses, 1.0, 4, 1.0, state.state_dict(list(shapes)), "")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "dog.safetensors"
        good.save(path)
        content, expected = path.read_bytes(), Expected(shapes, config.steps)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        record = json.loads(header["__metadata__"]["seqlora.checkpoint"])
        for index in range(count):
            path.write_bytes(_damaged_checkpoint(content, record, good.tensors, rng))
            monitor, started = StopAfter(99), time.process_time()
            try:
                saved = resumable_checkpoint(path, config, dict(identity), data, rng.random() < 0.5, monitor, expected)
            except UserError as error:
                _check_sentence(error)
                assert "Cannot resume" in str(error), str(error)
                yield "checkpoint of another run"
                continue
            assert monitor.messages
            if saved is not None:
                resumed = _begun(config, shapes, saved)
                while resumed.step < config.steps:
                    _step(resumed)
            yield "checkpoint resumed" if saved else "checkpoint left behind"
            assert time.process_time() - started < MOST_SECONDS, f"input {index} of seed {seed} is slow"


def _begun(config, shapes: dict, saved: Checkpoint | None = None) -> TrainingState:
    A = [saved.tensors[f"A.{name}"] if saved else torch.zeros(out, 2) for name, (out, _, _) in shapes.items()]
    B = [saved.tensors[f"B.{name}"] if saved else torch.ones(width, 2) for name, (_, width, _) in shapes.items()]
    state = TrainingState.begin(A, B, config, 1, None, torch.device("cpu"))
    if saved:
        state.step, state.losses, state.seconds = saved.step, saved.losses, saved.seconds
        state.load_optimizers(saved.tensors, torch.device("cpu"))
    return state


def _step(state: TrainingState) -> None:
    for optimizer in (state.lower, state.upper):
        optimizer.step([torch.ones_like(parameter) for parameter in optimizer.parameters])
    state.finish_step(1.0)
    state.factors()


def _damaged_checkpoint(content: bytes, record: dict, tensors: dict, rng: random.Random) -> bytes:
    way = rng.random()
    if way < 0.15:
        return content[: rng.randrange(len(content))]
    if way < 0.35:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 3, 50))):
            changed[rng.randrange(rng.choice((10, 2000, len(content))))] = rng.randrange(256)
        return bytes(changed)
    tensors, text = dict(tensors), json.dumps(record)
    if way < 0.75:
        text = damaged_text(record, rng).decode("utf-8", "replace")
    if way > 0.65:
        for _ in range(rng.choice((1, 2))):
            key = rng.choice(list(tensors))
            other = rng.choice((torch.zeros(3), torch.zeros(2, 2), torch.tensor(-5), torch.tensor(float("nan")), None))
            kind = rng.choice((torch.float16, torch.int64, torch.float32, torch.float32))
            tensor = tensors.pop(key)
            if rng.random() < 0.8:
                tensors[rng.choice((key, key, "x", "lower.9.step", "average.count", "upper.x.y"))] = (
                    tensor.to(kind) if other is None else other
                )
    return save({name: tensor.clone() for name, tensor in tensors.items()}, {"seqlora.checkpoint": text})


def _check_sentence(error: UserError) -> None:
    assert "\n" not in str(error), str(error)
    assert len(str(error)) < 900, str(error)


PARTS = {"kills": kills, "faults": faults, "readers": readers, "manifests": manifests, "checkpoints": checkpoints}
