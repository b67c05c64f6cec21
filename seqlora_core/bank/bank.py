"""The operations on a bank's folder.  Safe between processes, and against a crash at any instant."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor

from .. import files as storage
from .. import subspace
from ..errors import UserError
from ..hashing import sha256
from ..model.adapters import Adapter
from ..model.architecture import BaseIdentity
from ..model.sd15 import LayerShape
from . import lora_file, names
from .manifest import Concept, Manifest, Provenance
from .spec import ConceptSpec

_MANIFEST = "bank.json"
_THUMBNAIL_SIZE = 256


@dataclass(frozen=True)
class NewConcept(ConceptSpec):
    """A concept on its way into a bank (attributes as `Concept`'s); `adapters` by canonical layer name."""

    rank: int
    method: str
    adapters: Mapping[str, Adapter]
    provenance: Provenance = field(default_factory=Provenance)
    settings: dict = field(default_factory=dict)
    requested: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    thumbnail: Image.Image | None = None


class Bank:
    """A bank as it was when opened or last refreshed; every change reads the newest manifest first.

    Attributes:
        folder: where it lies.
        manifest: the snapshot.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    # Opening

    @staticmethod
    def exists(folder: Path | str) -> bool:
        """Whether a bank lies there."""
        return (Path(folder) / _MANIFEST).is_file()

    @classmethod
    def open(cls, folder: Path | str) -> "Bank":
        """Open an existing bank.

        Raises:
            UserError: there is none, or its manifest cannot be used.
        """
        folder = Path(folder)
        return cls(folder, _read_manifest(folder))

    @classmethod
    def open_or_create(cls, folder: Path | str, base: BaseIdentity, layers: Mapping[str, LayerShape]) -> "Bank":
        """Open a bank and check that it belongs to `base`, or create an empty one; one without concepts takes any base.

        Raises:
            UserError: the bank was made with another base (names both), or its folder cannot be used.
        """
        folder = Path(folder)
        if not cls.exists(folder):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"Cannot make the bank's folder {folder}: {error.strerror}.") from error
            with storage.locked(folder / ".lock"):
                if not cls.exists(folder):
                    _write_manifest(folder, Manifest(base, dict(layers)))
        bank = cls.open(folder)
        if not bank.concepts and bank.manifest.base.fingerprint != base.fingerprint:
            bank = bank._given_to(base, layers)
        bank.check_base(base)
        return bank

    def _given_to(self, base: BaseIdentity, layers: Mapping[str, LayerShape]) -> "Bank":
        """This empty bank, which a training that failed has left behind, for another base.

        Checkpoints stay: they name their base, so that only a training on that one resumes them.
        """

        def refuse() -> None:  # the training that holds the lock is making the first concept of the other base
            self.check_base(base)

        with storage.locked(self.folder / ".training.lock", refuse), storage.locked(self.folder / ".lock"):
            manifest = _read_manifest(self.folder)
            if not manifest.concepts:
                _write_manifest(self.folder, manifest.with_base(base, layers))
        return Bank.open(self.folder)

    def refresh(self) -> "Bank":
        """Read the manifest again.

        Raises:
            UserError: the bank was empty, and meanwhile it was given to another base than the one at hand.
        """
        newest = Bank.open(self.folder)
        newest.check_base(self.manifest.base)
        self.manifest = newest.manifest
        return self

    def check_base(self, base: BaseIdentity) -> None:
        """Refuse a base model that the bank was not made with.

        Raises:
            UserError: names both.
        """
        own = self.manifest.base
        if own.fingerprint != base.fingerprint:
            raise UserError(
                f"The bank {self.folder} belongs to the base model {own.name} ({own.fingerprint[:8]}), "
                f"not to {base.name} ({base.fingerprint[:8]}): use that base, or another bank."
            )

    # Reading

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts in training order."""
        return self.manifest.concepts

    def concept(self, name: str) -> Concept:
        """One concept.

        Raises:
            UserError: the bank has none of that name; lists those that it has.
        """
        found = self.manifest.find(name)
        if found is None:
            known = ", ".join(concept.name for concept in self.concepts) or "none yet"
            raise UserError(f"The bank {self.folder} has no concept {name!r}; it has: {known}.")
        return found

    def require_free(self, name: str, advice: str = "choose another name, or replace it") -> None:
        """Raises UserError, with the advice, where the bank has a concept of that name."""
        if taken := self.manifest.find(name):
            raise UserError(f"The bank already has a concept {taken.name!r}: {advice}.")

    def check_words(self, spec: ConceptSpec, vocabulary: Container[str] = ()) -> list[str]:
        """Check the token of a new concept, or of one that replaces its namesake, against the others.

        Args:
            vocabulary: entries of the base's tokenizer, by which ordinary words are recognized.

        Returns:
            Sentences about what will work less well than another token.

        Raises:
            UserError: prompts could not tell the concept from its class or from another concept.
        """
        replaced = self.manifest.find(spec.name)
        others = [concept.token for concept in self.concepts if concept is not replaced]
        return names.check_new_words(spec.token, spec.class_word, others, vocabulary)

    def load(self, concepts: Sequence[Concept] | None = None) -> dict[str, dict[str, Adapter]]:
        """The adapters of some concepts (default: all), by concept name, then canonical layer name; float32, CPU.

        Raises:
            UserError: a file is missing, was changed, or does not fit the bank.
        """
        with self._reading():
            if concepts is None:
                concepts = self.refresh().concepts
            return {concept.name: self._load_one(concept) for concept in concepts}

    def read(self, concepts: Sequence[Concept]) -> Iterator[dict[str, Adapter]]:
        """As `load`, one concept after the other, so that a large bank need not be in memory at once."""
        with self._reading():
            for concept in concepts:
                yield self._load_one(concept)

    def _load_one(self, concept: Concept) -> dict[str, Adapter]:
        path = self.folder / PurePosixPath(concept.file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"The file of concept {concept.name!r} cannot be read: {path} ({error.strerror})."
            ) from error
        if sha256(content) != concept.sha256:
            raise UserError(f"The file of concept {concept.name!r} is damaged or was changed: {path}.")
        adapters = lora_file.deserialize(content, str(path))
        for layer, adapter in adapters.items():
            fits = self.manifest.layers.get(layer) == LayerShape(*adapter.widths)
            if not fits or adapter.rank > concept.rank or layer in concept.layers_skipped:
                raise UserError(f"The file of concept {concept.name!r} does not fit this bank's layer {layer}: {path}.")
        return adapters

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep files from being replaced while several are read; a bank on a read-only disk cannot change anyway."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(storage.Unwritable):
                stack.enter_context(storage.locked(self.folder / ".lock"))
            yield

    def export(self, name: str, target: Path) -> Path:
        """Copy a concept's file, a stock LoRA, to `target`.

        Raises:
            UserError: there is no such concept, its file is damaged, or `target` holds something else.
        """
        concept = self.concept(name)
        self.load([concept])  # checks it
        content = (self.folder / PurePosixPath(concept.file)).read_bytes()
        if not target.exists():
            storage.write_atomically(target, content)
        elif target.read_bytes() != content:
            raise UserError(f"{target.name} exists and is another file: choose another name, or delete it first.")
        return target

    def occupied(self, without: str | None = None) -> dict[str, Tensor]:
        """Per layer, `Q [n, k]`: an orthonormal basis of all concepts' bases, float64 (see `subspace`).

        Args:
            without: a concept to leave out, because it is about to be replaced.
        """
        skipped = self.manifest.find(without) if without else None
        loaded = self.load([concept for concept in self.concepts if concept is not skipped])
        return {
            layer: subspace.occupied(
                (adapters[layer].B for adapters in loaded.values() if layer in adapters), shape.width
            )
            for layer, shape in self.manifest.layers.items()
        }

    # Changing

    @contextmanager
    def training(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Be the only training in this bank: a basis is orthogonal only to what was there when its training began."""
        with storage.locked(self.folder / ".training.lock", waiting):
            self.refresh()
            yield

    def checkpoint_path(self, name: str) -> Path:
        """Where the unfinished training of a concept is kept, outside the manifest."""
        own = sha256(name.strip().casefold().encode())[:8]  # many names may have the same slug
        return self.folder / "checkpoints" / f"{names.slug(name)}-{own}.safetensors"

    def discard_checkpoint(self, name: str) -> None:
        """Delete the checkpoint of a concept that is in the bank now; one that somebody holds open stays, unused."""
        with contextlib.suppress(OSError):
            self.checkpoint_path(name).unlink(missing_ok=True)

    def add(self, new: NewConcept, replace: bool = False) -> Concept:
        """Append a concept; with `replace`, in place of the one of that name (its order becomes the last).

        Raises:
            UserError: the name is bad, or taken (without `replace`).
        """
        with self._changing():
            if not replace:
                self.require_free(new.name)
            old = self.manifest.find(new.name)
            others = tuple(concept for concept in self.concepts if concept is not old)
            record = Concept(
                name=new.name,
                token=new.token,
                class_word=new.class_word,
                rank=new.rank,
                method=new.method,
                file="",
                sha256="",
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                layers_skipped=tuple(layer for layer in self.manifest.layers if layer not in new.adapters),
                provenance=new.provenance,
                settings=new.settings,
                requested=new.requested,
                metrics=new.metrics,
            )
            record = self._write_concept(record, new.adapters, _webp(new.thumbnail))
            self._publish((*others, record))
            if old is not None:
                self._discard(old)
        return record

    def remove(self, name: str) -> Concept:
        """Take a concept out; its directions are free again for later concepts."""
        with self._changing():
            concept = self.concept(name)
            self._publish(tuple(other for other in self.concepts if other is not concept))
            self._discard(concept)
        return concept

    def rename(self, name: str, new_name: str) -> Concept:
        """Give a concept another name; its token stays what it was trained with.

        Raises:
            UserError: there is no such concept, the new name is bad or taken, or a training is running: one that is to
                replace the concept looks for it by its name.
        """
        new_name = names.check_name(new_name)
        with storage.locked(self.folder / ".training.lock", _refuse_while_training), self._changing():
            old = self.concept(name)
            if self.manifest.find(new_name) is not old:
                self.require_free(new_name, "choose another name")
            thumbnail = b""
            if old.thumbnail:
                with contextlib.suppress(OSError):  # no more than decoration
                    thumbnail = (self.folder / PurePosixPath(old.thumbnail)).read_bytes()
            renamed = dataclasses.replace(old, name=new_name)
            renamed = self._write_concept(renamed, self._load_one(old), thumbnail)
            self._publish(tuple(renamed if other is old else other for other in self.concepts))
            self._discard(old)
        return renamed

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with storage.locked(self.folder / ".lock"):
            self.refresh()
            yield

    def _write_concept(self, record: Concept, adapters: Mapping[str, Adapter], thumbnail: bytes) -> Concept:
        """Write a concept's files under names that no other file has; until `_publish` nobody knows of them."""
        taken = {PurePosixPath(concept.file).stem for concept in self.concepts}
        # Of concepts that are gone, too: Windows keeps a file as long as somebody has it open.
        taken |= {path.stem for path in (self.folder / "concepts").glob("*.safetensors")}
        slug = names.slug(record.name, taken)
        record = dataclasses.replace(
            record,
            file=f"concepts/{slug}.safetensors",
            thumbnail=f"thumbnails/{slug}.webp" if thumbnail else "",
        )
        described = {key: value for key, value in record.as_dict().items() if key != "sha256"}
        header = lora_file.metadata(
            title=record.name,
            trigger=record.subject,
            base_name=self.manifest.base.name,
            rank=record.rank,
            extra={"bank": self.manifest.id, "concept": described},
        )
        content = lora_file.serialize(adapters, header)
        storage.write_atomically(self.folder / record.file, content)
        if thumbnail:
            storage.write_atomically(self.folder / record.thumbnail, thumbnail)
        return dataclasses.replace(record, sha256=sha256(content))

    def _publish(self, concepts: tuple[Concept, ...]) -> None:
        self.manifest = self.manifest.with_concepts(concepts)
        _write_manifest(self.folder, self.manifest)

    def _discard(self, concept: Concept) -> None:
        for relative in filter(None, (concept.file, concept.thumbnail)):
            # A file that is open elsewhere on Windows, or gone already, is no longer part of the bank either way.
            with contextlib.suppress(OSError):
                (self.folder / PurePosixPath(relative)).unlink()


def _refuse_while_training() -> None:
    raise UserError("A training is running in this bank: rename the concept when it is done.")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / _MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"There is no bank in {folder}: train a concept into it first, or check the path.") from error
    except OSError as error:
        raise UserError(f"The bank {folder} cannot be read: {error.strerror}.") from error
    manifest = Manifest.from_json(text, str(path))
    for concept in manifest.concepts:
        _check_relative(concept.file, path)
        if concept.thumbnail:
            _check_relative(concept.thumbnail, path)
    return manifest


def _check_relative(relative: str, source: Path) -> None:
    """A manifest comes from anywhere, so what it names must lie in its own folder."""
    parts = PurePosixPath(relative).parts
    if len(parts) != 2 or parts[0] not in ("concepts", "thumbnails") or ".." in parts or set("\\:") & set(relative):
        raise UserError(f"{source} names a file outside its folder ({relative!r}) and is not used.")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    storage.write_atomically(folder / _MANIFEST, manifest.to_json().encode())


def _webp(image: Image.Image | None) -> bytes:
    if image is None:
        return b""
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()
