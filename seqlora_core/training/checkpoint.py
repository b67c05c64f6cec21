"""The state of an unfinished training run: one safetensors file, rewritten atomically."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..bank.migration import resolved_settings
from ..data.dataset import EncodedConcept
from ..errors import UserError
from ..files import is_plain, write_atomically
from ..monitor import Monitor
from ..tensor_file import TensorFile
from .config import OF_THE_MACHINE, ResolvedConfig

VERSION = 3
_METADATA_KEY = "seqlora.checkpoint"
_MAX_BYTES = 2**33  # of rank 128 on all layers of SD1.5, a checkpoint takes less than 1 GB
_LONGEST_SHOWN = 100  # characters; hashes and lists of them tell people nothing


@dataclass(frozen=True)
class Expected:
    """What the checkpoint of a run holds.

    Attributes:
        layers: by name, in order, (m, n, d): the widths of output and input, and the free directions.
        steps: of the factors.
        word: the shape of the word's vectors; None for a run that learns no word.
        word_steps: of the word.
    """

    layers: Mapping[str, tuple[int, int, int]]
    steps: int
    word: tuple[int, ...] | None = None
    word_steps: int = 0


@dataclass
class Checkpoint:
    """Everything that the next step depends on.

    Attributes:
        identity: what must be the same for a resumed run to be the same run: the base model's and the data's
            fingerprints, the concept, the bank's concepts before it.
        tensors: factors and optimizer state by name.
        step, losses: of the factors.
        word_step, word_losses: of the word, which is learned before the factors.
        held_out: pairs of a step of the factors and the loss of the held-out images before it.
        directions: a hash of the coordinates in which the basis's optimizer works; empty for the basis's own.
    """

    step: int
    config: ResolvedConfig
    identity: dict
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    passes: int = 0
    loss_scale: float | None = None  # unknown in early files of version 1
    tensors: dict[str, Tensor] = field(default_factory=dict)
    directions: str | None = None  # unknown in early files of version 1
    word_step: int = 0
    word_losses: list[float] = field(default_factory=list)
    held_out: list[list[float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it in place of the previous one."""
        record = {
            "version": VERSION,
            "step": self.step,
            "config": self.config.as_dict(),
            "identity": self.identity,
            "losses": self.losses,
            "seconds": self.seconds,
            "passes": self.passes,
            "loss_scale": self.loss_scale,
            "directions": self.directions,
            "word_step": self.word_step,
            "word_losses": self.word_losses,
            **({"held_out": self.held_out} if self.held_out else {}),  # earlier versions do not know it
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        write_atomically(path, save(tensors, {_METADATA_KEY: json.dumps(record)}))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read one.

        Raises:
            UserError: the file is not a checkpoint of this program.
        """
        try:
            if not is_plain(path) or path.stat().st_size > _MAX_BYTES:
                raise UserError("it is a link, a pipe or larger than any checkpoint")
            file = TensorFile.open(path)
            record = json.loads(file.metadata[_METADATA_KEY])
            settings = record.pop("config")
            if record.pop("version", 1) == 1:
                settings = resolved_settings(settings)
            checkpoint = cls(config=ResolvedConfig.from_dict(settings), tensors=dict(file), **record)
            checkpoint._check_record()
            return checkpoint
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError, UserError) as error:
            raise UserError(f"{path} is not a readable checkpoint: delete it and train again.") from error

    def _check_record(self) -> None:
        """Raises ValueError where a value is not what `save` writes."""
        numbers = [
            self.seconds,
            *self.losses,
            *self.word_losses,
            *(number for pair in self.held_out for number in pair),
            *([] if self.loss_scale is None else [self.loss_scale]),
        ]
        counts = [self.step, self.passes, self.word_step]
        if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
            raise ValueError("step, passes or word_step")
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError("losses, seconds or loss_scale")
        if self.seconds < 0 or not (self.loss_scale or 1) > 0:
            raise ValueError("losses, seconds or loss_scale")
        if any(len(pair) != 2 or type(pair[0]) is not int for pair in self.held_out):
            raise ValueError("held_out")
        if not isinstance(self.identity, dict) or not isinstance(self.directions, (str, type(None))):
            raise ValueError("identity or directions")

    @property
    def has_factors(self) -> bool:
        """Whether the run had come to the factors."""
        return any(name.startswith("A.") for name in self.tensors)

    def check_tensors(self, expected: Expected) -> None:
        """Check that the tensors are those of a run.

        Raises:
            ValueError: one is missing or of no use.
        """
        word = expected.word
        shapes = self._expected_shapes(expected.layers) if self.has_factors or word is None else {}
        if word is not None:
            shapes |= {"word.vectors": word}
            if self.word_step:
                shapes |= {"word.0.exp_avg": word, "word.0.exp_avg_sq": word, "word.0.step": ()}
        if shapes.keys() != self.tensors.keys():
            raise ValueError(f"{min(shapes.keys() ^ self.tensors.keys())} is missing or too much")
        for key, tensor in self.tensors.items():
            is_count, is_negative = key == "average.count", bool((tensor < 0).any())
            if tuple(tensor.shape) != shapes[key] or tensor.dtype != (torch.int64 if is_count else torch.float32):
                raise ValueError(f"{key} has another shape or type")
            if is_negative and (is_count or key.endswith((".step", ".exp_avg_sq"))):
                raise ValueError(f"{key} is negative")

    def _expected_shapes(self, layers: Mapping[str, tuple[int, int, int]]) -> dict[str, tuple[int, ...]]:
        rank = self.config.rank
        both = [(m, rank) for m, _, _ in layers.values()] + [(n, rank) for _, n, _ in layers.values()]
        # In coordinates, the optimizer of B has a row per free direction.
        in_coordinates = self.config.coordinates != "plain" and self.directions != ""
        rows = [d if in_coordinates else n for _, n, d in layers.values()]
        factors = {"lower": both[: len(layers)], "upper": [(count, rank) for count in rows]}
        shapes: dict[str, tuple[int, ...]] = dict(
            zip([f"{factor}.{name}" for factor in "AB" for name in layers], both, strict=True)
        )
        for kind, own in factors.items():
            if any(key.startswith(f"{kind}.") for key in self.tensors):  # a factor that was never stepped has no memory
                for index, shape in enumerate(own):
                    shapes |= {f"{kind}.{index}.exp_avg": shape, f"{kind}.{index}.exp_avg_sq": shape}
                    shapes[f"{kind}.{index}.step"] = ()
        if "average.0" in self.tensors:
            shapes |= {f"average.{index}": shape for index, shape in enumerate(both)}
        if "average.0" in self.tensors or "average.count" in self.tensors:
            shapes["average.count"] = ()
        return shapes

    def _counts_fit(self, expected: Expected) -> bool:
        of_word = self.word_step, self.word_losses, expected.word_steps
        of_factors = self.step, self.losses, expected.steps
        counted = all(step == len(losses) and step <= most for step, losses, most in (of_word, of_factors))
        return counted and (self.word_step == expected.word_steps if self.has_factors else self.step == 0)

    def difference(self, config: ResolvedConfig, identity: dict) -> str | None:
        """The first thing in which a run differs from this one, in words; None if it is the same."""
        old, new = {**self.config.as_dict(), **self.identity}, {**config.as_dict(), **identity}
        for name, value in new.items():
            if name not in OF_THE_MACHINE and old.get(name) != value:
                shown = f"its {name} was {old.get(name)!r} and is now {value!r}"
                return shown if len(shown) <= _LONGEST_SHOWN else f"its {name} changed"
        return None

    def check_same_run(self, config: ResolvedConfig, identity: dict, path: Path) -> None:
        """Refuse to continue another run.

        Raises:
            UserError: names the first thing that differs.
        """
        if difference := self.difference(config, identity):
            raise UserError(
                f"Cannot resume {path}: {difference}. Use the same settings and data, or train without resuming."
            )


def is_of_rare_word(path: Path) -> bool:
    """Whether an unfinished run of a concept that learns no word lies there."""
    try:
        return os.path.lexists(path) and not Checkpoint.load(path).config.learns_word
    except UserError:
        return False


def resumable_checkpoint(
    path: Path,
    config: ResolvedConfig,
    identity: dict,
    data: EncodedConcept,
    restart_if_changed: bool,
    monitor: Monitor,
    expected: Expected,
) -> Checkpoint | None:
    """The checkpoint at `path` if it is of the same run; None, with a message, if it is damaged; None if there is none.

    Args:
        restart_if_changed: ignore a checkpoint of another run, with a message, instead of refusing.

    Raises:
        UserError: it is of another run.
    """
    if not os.path.lexists(path):
        return None
    try:
        saved = Checkpoint.load(path)
    except UserError:
        return _without(path, monitor)
    # Early files of version 1 do not name the base, and have the data as it was encoded.
    saved.identity.setdefault("base model", identity["base model"])
    if saved.identity.get("data") == data.encoded_fingerprint():
        saved.identity["data"] = identity["data"]
    if restart_if_changed and (difference := saved.difference(config, identity)):
        monitor.message(f"Starting again at step 0 instead of {saved.word_step + saved.step}: {difference}.")
        return None
    saved.check_same_run(config, identity, path)
    try:
        saved.check_tensors(expected)
    except ValueError:
        return _without(path, monitor)
    if not saved._counts_fit(expected):
        return _without(path, monitor)
    monitor.message(f"Resuming at step {saved.word_step + saved.step} of {expected.word_steps + expected.steps}.")
    return saved


def _without(path: Path, monitor: Monitor) -> None:
    monitor.message(f"The checkpoint {path} is damaged, so the training run starts again at step 0.")
