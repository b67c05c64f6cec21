"""Write and read composed adapters as stock LoRA files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..bank import Bank, lora_file
from ..errors import UserError
from ..files import write_atomically
from ..model.adapters import Adapter
from ..model.sd15 import LayerShape
from .selection import trigger_words


def save_composed(
    bank: Bank, selection: Sequence[tuple[str, float]], path: Path, adapters: Mapping[str, Adapter], fusion: str = "sum"
) -> None:
    """Write composed adapters as one stock LoRA file, with a header that describes its content.

    Args:
        selection: (name, strength) of each concept, for the header.
        fusion: how the adapters were composed, for the header.

    Raises:
        UserError: the file cannot be written.
    """
    header = lora_file.metadata(
        title=" + ".join(bank.concept(name).name for name, _ in selection),
        trigger=trigger_words(bank, selection),
        base_name=bank.manifest.base.name,
        rank=max((adapter.rank for adapter in adapters.values()), default=0),
        extra={"bank": bank.manifest.id, "composed": [list(part) for part in selection], "fusion": fusion},
    )
    try:
        write_atomically(path, lora_file.serialize(adapters, header))
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error


def load_composed(path: Path) -> dict[str, Adapter]:
    """Read a file that `save_composed` wrote, or another LoRA that adapts attention layers only.

    Raises:
        UserError: the file cannot be read.
    """
    return lora_file.read(path)


def check_fits(adapters: Mapping[str, Adapter], layers: Mapping[str, LayerShape], source: str) -> None:
    """Raise UserError if adapters from the file `source` do not have the shapes of a base's layers."""
    for layer, adapter in adapters.items():
        if layers.get(layer) != LayerShape(*adapter.widths):
            raise UserError(f"The LoRA {source} does not fit this base at {layer}: use the base that it was made for.")
