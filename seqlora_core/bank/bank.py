"""The operations on a bank's folder.  Safe between processes, and against a crash at any instant."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from . import concept_files, names
from . import folder as bank_files
from .concept_files import Contents
from .manifest import Concept, Manifest
from .new_concept import NewConcept
from .spec import ConceptSpec


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
        """Whether a bank lies there, or something in the place of its manifest, which `open` then names."""
        return os.path.lexists(Path(folder) / bank_files.MANIFEST)

    @classmethod
    def open(cls, folder: Path | str) -> "Bank":
        """Open an existing bank.

        Raises:
            UserError: there is none, or its manifest cannot be used.
        """
        folder = Path(folder)
        return cls(folder, bank_files.read_manifest(folder))

    @classmethod
    def open_or_create(cls, folder: Path | str, base: BaseIdentity, layers: Mapping[str, LayerShape]) -> "Bank":
        """Open a bank and check that it belongs to `base`, or create an empty one; one without concepts takes any base.

        Raises:
            UserError: the bank was made with another base (names both), or its folder cannot be used.
        """
        folder = Path(folder)
        if not cls.exists(folder):
            cls._create(folder, Manifest(base, dict(layers)))
        bank = cls.open(folder)
        if not bank.concepts and bank.manifest.base.fingerprint != base.fingerprint:
            bank = bank._given_to(base, layers)
        bank.check_base(base)
        bank.check_layers(layers)
        return bank

    @classmethod
    def _create(cls, folder: Path, manifest: Manifest) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot make the bank's folder {folder} ({storage.describe(error)}).") from error
        with storage.locked(folder / ".lock"):
            if not cls.exists(folder):
                with _explaining(f"make a bank in {folder}"):
                    bank_files.write_manifest(folder, manifest)

    def _given_to(self, base: BaseIdentity, layers: Mapping[str, LayerShape]) -> "Bank":
        """Give this empty bank, which a failed training run has left, to another base.

        Checkpoints stay: they name their base, so that only a run on that one resumes them.
        """

        def refuse() -> None:  # the run that holds the lock is training the first concept of the other base
            self.check_base(base)

        with storage.locked(self.folder / ".training.lock", refuse), storage.locked(self.folder / ".lock"):
            manifest = bank_files.read_manifest(self.folder)
            if not manifest.concepts:
                with _explaining(f"change the bank {self.folder}"):
                    bank_files.write_manifest(self.folder, manifest.with_base(base, layers))
        return Bank.open(self.folder)

    def refresh(self) -> "Bank":
        """Read the manifest again.

        Raises:
            UserError: the bank was empty, and was given to another base since.
        """
        newest = bank_files.read_manifest(self.folder)
        self._check_same_base(newest)
        self.manifest = newest
        return self

    def _check_same_base(self, newest: Manifest) -> None:
        Bank(self.folder, newest).check_base(self.manifest.base)

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

    def check_layers(self, layers: Mapping[str, LayerShape]) -> None:
        """Raise UserError where the manifest's layers are not those of the base that it names: somebody changed it."""
        if self.manifest.layers != dict(layers):
            raise UserError(
                f"{self.folder / bank_files.MANIFEST} has other layers than its base model: restore it from a backup."
            )

    def check_text_encoder(self, fingerprint: str) -> None:
        """Refuse a text encoder that the bank's words do not belong to.

        Raises:
            UserError: it is another one.
        """
        own = self.manifest.text_encoder
        if own and fingerprint and own != fingerprint:
            raise UserError(
                f"The words of the bank {self.folder} were learned with another text encoder ({own[:8]}) than this one "
                f"({fingerprint[:8]}): use the CLIP of the bank's base model, or another bank."
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
        with self._reading() as newest:
            if concepts is None:
                self.manifest = newest
                concepts = self.concepts
            return {concept.name: concept_files.load_adapters(self.folder, concept, newest) for concept in concepts}

    def load_intact(self, without: str | None = None) -> tuple[dict[str, dict[str, Adapter]], list[str]]:
        """As `load`, of the newest manifest's concepts, without those that cannot be loaded.

        Args:
            without: a concept to leave out, because it is about to be replaced.

        Returns:
            What was loaded, and a sentence for each concept that was not.
        """
        loaded, problems = {}, []
        with self._reading() as newest:
            self.manifest = newest
            left_out = newest.find(without) if without else None
            for concept in newest.concepts:
                if concept is left_out:
                    continue
                try:
                    loaded[concept.name] = concept_files.load_adapters(self.folder, concept, newest)
                except UserError as error:
                    problems.append(str(error))
        return loaded, problems

    def words(self, concepts: Sequence[Concept] | None = None, problems: list[str] | None = None) -> dict[str, Tensor]:
        """The learned words of some concepts (default: all): token -> vectors [k, w] float32, on the CPU.

        Of concepts with the same token, as the versions of one subject have it, the last one counts.

        Args:
            problems: receives a sentence for each word that cannot be loaded, which is then left out.

        Raises:
            UserError: a word cannot be loaded (without `problems`).
        """
        words: dict[str, Tensor] = {}
        with self._reading() as newest:
            if concepts is None:
                self.manifest = newest
                concepts = self.concepts
            for concept in concepts:
                if concept.embedding:
                    try:
                        words[concept.token] = concept_files.load_word(self.folder, concept, newest)
                    except UserError as error:
                        if problems is None:
                            raise
                        problems.append(str(error))
        return words

    def read(self, concepts: Sequence[Concept]) -> Iterator[dict[str, Adapter]]:
        """As `load`, one concept after the other, so that a large bank need not be in memory at once."""
        with self._reading() as newest:
            for concept in concepts:
                yield concept_files.load_adapters(self.folder, concept, newest)

    @contextmanager
    def _reading(self) -> Iterator[Manifest]:
        """The newest manifest, whose files stay while the block lasts; a read-only disk cannot change anyway."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(storage.Unwritable):
                stack.enter_context(storage.locked(self.folder / ".lock"))
            newest = bank_files.read_manifest(self.folder)
            self._check_same_base(newest)
            yield newest

    def export(self, name: str, target: Path) -> Path:
        """Copy a concept's file, a stock LoRA, to `target`.

        Raises:
            UserError: there is no such concept, its file is damaged, `target` lies in a bank or holds something else,
                or it cannot be written.
        """
        bank_files.check_outside_banks(target, [self.folder])
        concept = self.concept(name)
        with self._reading() as newest:
            concept_files.load_adapters(self.folder, concept, newest)  # checks it
            content = concept_files.read_lora(self.folder, concept, newest)
        with _explaining(f"write {target}"):
            if not target.exists():
                storage.write_atomically(target, content)
                return target
            same = storage.is_plain(target.resolve()) and target.read_bytes() == content
        if not same:
            raise UserError(f"{target.name} exists and is another file: choose another name, or delete it first.")
        return target

    def occupied(self, without: str | None = None) -> dict[str, Tensor]:
        """Per layer, `Q [n, k]`: an orthonormal basis of all intact concepts' bases, float64 (see `subspace`).

        Args:
            without: a concept to leave out, because it is about to be replaced.
        """
        loaded, _ = self.load_intact(without)
        return self.spanned_by(loaded)

    def spanned_by(self, loaded: Mapping[str, Mapping[str, Adapter]]) -> dict[str, Tensor]:
        """As `occupied`, of the concepts in `loaded` (see `load_intact`)."""
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
            if new.word is not None:
                self.check_text_encoder(new.text_encoder)
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
            contents = Contents(new.adapters, concept_files.to_thumbnail(new.thumbnail), new.word)
            return self._publish_one(record, contents, old, lambda record: (*others, record), new.text_encoder)

    def remove(self, name: str) -> Concept:
        """Take a concept out; its directions are free again for later concepts."""
        with self._changing():
            concept = self.concept(name)
            with _explaining(f"remove {concept.name!r} from the bank {self.folder}"):
                try:
                    bank_files.mark(self.folder, [concept])
                    self._publish(tuple(other for other in self.concepts if other is not concept))
                except BaseException:
                    if not self._is_unknown(concept):
                        bank_files.unmark(self.folder, [concept])
                    raise
        return concept

    def rename(self, name: str, new_name: str) -> Concept:
        """Give a concept another name; its token stays what it was trained with.

        Raises:
            UserError: there is no such concept, the new name is bad or taken, or a training run is using the bank: one
                that is to replace the concept looks for it by its name.
        """
        new_name = names.check_name(new_name)
        with storage.locked(self.folder / ".training.lock", _refuse_while_training), self._changing():
            old = self.concept(name)
            if self.manifest.find(new_name) is not old:
                self.require_free(new_name, "choose another name")
            return self._republish(old, name=new_name)

    def replace_thumbnail(self, name: str, image: Image.Image) -> Concept:
        """Give a concept another thumbnail, which is made from `image`.

        Raises:
            UserError: there is no such concept, or its files are damaged or cannot be written.
        """
        with self._changing():
            return self._republish(self.concept(name), thumbnail=concept_files.to_thumbnail(image))

    def _republish(self, old: Concept, name: str | None = None, thumbnail: bytes | None = None) -> Concept:
        """Store a concept under another name or with another thumbnail; None leaves them."""
        if thumbnail is None:
            thumbnail = bank_files.read_thumbnail(self.folder, old)
        word = concept_files.load_word(self.folder, old, self.manifest) if old.embedding else None
        return self._publish_one(
            dataclasses.replace(old, name=old.name if name is None else name),
            Contents(concept_files.load_adapters(self.folder, old, self.manifest), thumbnail, word),
            old,
            lambda new: tuple(new if other is old else other for other in self.concepts),
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with storage.locked(self.folder / ".lock"):
            self.refresh()
            yield
            bank_files.clean(self.folder, self.manifest)

    def _publish_one(
        self,
        record: Concept,
        contents: Contents,
        old: Concept | None,
        concepts: Callable[[Concept], tuple[Concept, ...]],
        text_encoder: str = "",
    ) -> Concept:
        """Write a concept's files and the manifest that has it, in place of `old`; if that fails, take all back."""
        record = concept_files.with_file_names(record, contents, self._taken_stems())
        with _explaining(f"store {record.name!r} in the bank {self.folder}"):
            involved = [record, old] if old is not None else [record]
            try:
                bank_files.mark(self.folder, involved)
                record = concept_files.write(self.folder, record, contents, self.manifest)
                self._publish(concepts(record), text_encoder)
            except BaseException:
                if self._is_unknown(record):
                    bank_files.delete_files(self.folder, record)
                    bank_files.unmark(self.folder, involved)
                raise
        return record

    def _is_unknown(self, record: Concept) -> bool:
        """Whether the manifest on the disk certainly does not have that concept's files."""
        try:
            return all(other.file != record.file for other in bank_files.read_manifest(self.folder).concepts)
        except UserError:
            return False

    def _taken_stems(self) -> set[str]:
        """Names of files that a concept has, or one that is gone: Windows keeps a file that somebody has open."""
        taken = {PurePosixPath(concept.file).stem for concept in self.concepts}
        return taken | {path.stem for path in storage.entries(self.folder / "concepts")}

    def _publish(self, concepts: tuple[Concept, ...], text_encoder: str = "") -> None:
        manifest = self.manifest.with_concepts(concepts, text_encoder)
        bank_files.write_manifest(self.folder, manifest)
        self.manifest = manifest


@contextmanager
def _explaining(action: str) -> Iterator[None]:
    """Turn the system's errors into sentences.

    Raises:
        UserError: the block has failed to do `action` with a file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot {action} ({storage.describe(error)}).") from error


def _refuse_while_training() -> None:
    raise UserError("A training run is using this bank: rename the concept when it has finished.")
