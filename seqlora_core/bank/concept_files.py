"""The files of one concept: its LoRA, its learned word and its thumbnail.  Nothing is stored that cannot be loaded."""

import dataclasses
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..hashing import sha256
from ..model.adapters import Adapter
from ..model.sd15 import LayerShape
from . import embedding_file, folder, lora_file, names
from .manifest import Concept, Manifest

_THUMBNAIL_SIZE = 256


@dataclass(frozen=True)
class Contents:
    """What a concept's files hold.

    Attributes:
        adapters: by canonical layer name.
        thumbnail: a WebP file; empty for none.
        word: the vectors [k, w] of its learned word.
    """

    adapters: Mapping[str, Adapter]
    thumbnail: bytes = b""
    word: Tensor | None = None


def load_adapters(bank: Path, concept: Concept, newest: Manifest) -> dict[str, Adapter]:
    """Load a concept's adapters, by canonical layer name.

    Args:
        bank: its folder.
        newest: the manifest as it is now; the concept may have been renamed since its record was read.

    Raises:
        UserError: the file is missing, was changed, or does not fit the bank's layers.
    """
    path = bank / PurePosixPath(concept.file)
    adapters = lora_file.deserialize(read_lora(bank, concept, newest), str(path))
    for layer, adapter in adapters.items():
        fits = newest.layers.get(layer) == LayerShape(*adapter.widths)
        if not fits or adapter.rank > concept.rank or layer in concept.layers_skipped:
            raise UserError(f"The file of concept {concept.name!r} does not fit this bank's layer {layer}: {path}.")
    return adapters


def read_lora(bank: Path, concept: Concept, newest: Manifest) -> bytes:
    """The bytes of a concept's LoRA file (arguments and errors as `load_adapters`)."""
    current = _current(concept, newest)
    content = folder.read_concept_file(bank, current, newest)
    if sha256(content) != current.sha256:
        path = bank / PurePosixPath(current.file)
        raise UserError(f"The file of concept {concept.name!r} is damaged or was changed: {path}.")
    return content


def load_word(bank: Path, concept: Concept, newest: Manifest) -> Tensor:
    """The vectors [k, w] of a concept's learned word (arguments and errors as `load_adapters`)."""
    current = _current(concept, newest)
    content = folder.read_embedding_file(bank, current)
    path = bank / PurePosixPath(current.embedding)
    if sha256(content) != current.embedding_sha256:
        raise UserError(f"The word of concept {concept.name!r} is damaged or was changed: {path}.")
    return embedding_file.deserialize(content, str(path))[1]


def with_file_names(record: Concept, contents: Contents, taken: Collection[str]) -> Concept:
    """The record with names for its files whose stems are not in `taken`."""
    slug = names.slug(record.name, taken)
    return dataclasses.replace(
        record,
        file=f"concepts/{slug}.safetensors",
        thumbnail=f"thumbnails/{slug}.webp" if contents.thumbnail else "",
        embedding=f"embeddings/{slug}.safetensors" if contents.word is not None else "",
    )


def write(bank: Path, record: Concept, contents: Contents, manifest: Manifest) -> Concept:
    """Write a concept's files under the names in its record; return the record with their hashes.

    Raises:
        OSError: a file cannot be written.
        UserError: what would be written could not be loaded again.
    """
    if contents.word is not None:
        word = embedding_file.serialize(record.token, contents.word)
        embedding_file.deserialize(word, f"The word of concept {record.name!r}")
        folder.write_file(bank, record.embedding, word)
        record = dataclasses.replace(record, embedding_sha256=sha256(word))
    described = {key: value for key, value in record.as_dict().items() if key != "sha256"}
    header = lora_file.metadata(
        title=record.name,
        trigger=record.subject,
        base_name=manifest.base.name,
        rank=record.rank,
        extra={"bank": manifest.id, "concept": described},
    )
    content = lora_file.serialize(contents.adapters, header)
    lora_file.deserialize(content, f"Concept {record.name!r}")
    folder.write_file(bank, record.file, content)
    if contents.thumbnail:
        folder.write_file(bank, record.thumbnail, contents.thumbnail)
    return dataclasses.replace(record, sha256=sha256(content))


def to_thumbnail(image: Image.Image | None) -> bytes:
    """A small WebP file of an image; empty for None."""
    if image is None:
        return b""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def _current(concept: Concept, newest: Manifest) -> Concept:
    """The concept's newest record: its files have other names since it was renamed."""
    return next((other for other in newest.concepts if other.id == concept.id), concept)
