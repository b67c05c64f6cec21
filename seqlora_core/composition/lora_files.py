"""Write and read composed adapters as stock LoRA files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ..bank import Bank, embedding_file, lora_file
from ..bank.names import slug
from ..data.words import NO_WORDS, Words
from ..errors import UserError
from ..files import write_atomically
from ..model.adapters import Adapter
from ..model.sd15 import LayerShape
from ..tensor_file import TensorFile
from .selection import trigger_words


def save_composed(
    bank: Bank,
    selection: Sequence[tuple[str, float]],
    path: Path,
    adapters: Mapping[str, Adapter],
    fusion: str = "sum",
    words: Words = NO_WORDS,
) -> None:
    """Write composed adapters as one stock LoRA file, with a header that describes its content.

    Args:
        selection: (name, strength) of each concept, for the header.
        fusion: how the adapters were composed, for the header.
        words: learned words that the file carries as well.

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
        write_atomically(path, lora_file.serialize(adapters, header, words))
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error


def save_words(words: Words, folder: Path) -> list[Path]:
    """Write each word as a stock textual-inversion file, named by the word; returns the files.

    Raises:
        UserError: a file cannot be written.
    """
    files = _word_files(words, folder)
    for path, content in files.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror}.") from error
    return list(files)


def check_free(words: Words, folder: Path) -> None:
    """Raise UserError where `save_words` would write over a file that is not the same."""
    for path, content in _word_files(words, folder).items():
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise UserError(f"{path} exists and is another file: delete or move it first.")


def _word_files(words: Words, folder: Path) -> dict[Path, bytes]:
    files: dict[Path, bytes] = {}
    for word, vectors in words.items():
        path = folder / f"{slug(word, [path.stem for path in files])}.safetensors"
        files[path] = embedding_file.serialize(word, vectors)
    return files


def load_words(path: Path) -> dict[str, Tensor]:
    """Read the learned words that a LoRA file carries, by name.

    Raises:
        UserError: the file cannot be read.
    """
    return embedding_file.bundled_words(TensorFile.open(path))


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
