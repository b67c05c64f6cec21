"""The state of an unfinished training run: one safetensors file, rewritten atomically."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..bank.migration import resolved_settings
from ..data.dataset import EncodedConcept
from ..errors import UserError
from ..files import write_atomically
from ..monitor import Monitor
from .config import OF_THE_MACHINE, ResolvedConfig

VERSION = 2
_METADATA_KEY = "seqlora.checkpoint"
_LONGEST_SHOWN = 40  # hashes and lists of them tell people nothing


@dataclass
class Checkpoint:
    """Everything that the next step depends on.

    Attributes:
        identity: what must be the same for a resumed run to be the same run: the base model's and the data's
            fingerprints, the concept, the bank's concepts before it.
        tensors: factors and optimizer state by name.
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
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})[_METADATA_KEY])
                # Copies: a tensor in the file's memory map would keep Windows from replacing or deleting the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
            settings = record.pop("config")
            if record.pop("version", 1) == 1:
                settings = resolved_settings(settings)
            return cls(config=ResolvedConfig.from_dict(settings), tensors=tensors, **record)
        except (SafetensorError, KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} is not a readable checkpoint: delete it and train again.") from error

    def difference(self, config: ResolvedConfig, identity: dict) -> str | None:
        """The first thing in which a run differs from this one, in words; None if it is the same."""
        old, new = {**self.config.as_dict(), **self.identity}, {**config.as_dict(), **identity}
        for name, value in new.items():
            if name not in OF_THE_MACHINE and old.get(name) != value:
                shown = f"its {name} was {old.get(name)!r} and is now {value!r}"
                return shown if len(repr(value)) <= _LONGEST_SHOWN else f"its {name} changed"
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


def resumable_checkpoint(
    path: Path,
    config: ResolvedConfig,
    identity: dict,
    data: EncodedConcept,
    restart_if_changed: bool,
    monitor: Monitor,
) -> Checkpoint | None:
    """The checkpoint at `path` if it is of the same run; None if there is none to continue from.

    Args:
        restart_if_changed: ignore a checkpoint of another run, with a message, instead of refusing.

    Raises:
        UserError: it is of another run, or cannot be read.
    """
    if not path.is_file():
        return None
    saved = Checkpoint.load(path)
    # Early files of version 1 do not name the base, and have the data as it was encoded.
    saved.identity.setdefault("base model", identity["base model"])
    if saved.identity.get("data") == data.encoded_fingerprint():
        saved.identity["data"] = identity["data"]
    if restart_if_changed and (difference := saved.difference(config, identity)):
        monitor.message(f"Starting again at step 0 instead of {saved.step}: {difference}.")
        return None
    saved.check_same_run(config, identity, path)
    monitor.message(f"Resuming at step {saved.step} of {config.steps}.")
    return saved
