"""The state of an unfinished training: one safetensors file, rewritten atomically."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from .config import SPARE_MEMORY, TrainingConfig

_METADATA_KEY = "seqlora.checkpoint"
_LONGEST_SHOWN = 40  # hashes and lists of them tell people nothing


@dataclass
class Checkpoint:
    """Everything that the next step depends on.

    Attributes:
        identity: what must be the same for a resumed training to be the same training: the base model's and the data's
            fingerprints, the concept, the bank's concepts before it.
        tensors: factors and optimizer state by name.
        directions: a hash of the coordinates that the upper optimizer's state is in; empty for the basis's own.
    """

    step: int
    config: TrainingConfig
    identity: dict
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    passes: int = 0
    loss_scale: float | None = None  # unknown in files of the version before
    tensors: dict[str, Tensor] = field(default_factory=dict)
    directions: str | None = None  # unknown in files of the version before

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def save(self, path: Path) -> None:
        """Write it in place of the previous one."""
        record = {
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
            config = TrainingConfig.from_dict(record.pop("config"))
            return cls(config=config, tensors=tensors, **record)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a readable checkpoint: delete it and train again.") from error

    def difference(self, config: TrainingConfig, identity: dict) -> str | None:
        """The first thing in which a training differs from this one, in words; None where it is the same."""
        old, new = {**self.config.as_dict(), **self.identity}, {**config.as_dict(), **identity}
        for name, value in new.items():
            if name not in SPARE_MEMORY and old.get(name) != value:
                shown = f"its {name} was {old.get(name)!r} and is now {value!r}"
                return shown if len(repr(value)) <= _LONGEST_SHOWN else f"its {name} changed"
        return None

    def check_same_training(self, config: TrainingConfig, identity: dict, path: Path) -> None:
        """Refuse to continue another training.

        Raises:
            UserError: names the first thing that differs.
        """
        if difference := self.difference(config, identity):
            raise UserError(
                f"Cannot resume {path}: {difference}. Use the same settings and data, or train without resuming."
            )
