"""`bank.json`: what a bank holds.  The format is public; a change of it comes with a higher version and a migration.

{"format": "seqlora-bank", "version": 3, "id": "...", "generation": 7,
 "base": {"name": "...", "fingerprint": "..."}, "text_encoder": "...",
 "layers": {"<canonical layer name>": {"width": n, "out": m}, ...},
 "concepts": [{"name", "token", "class_word", "rank", "method", "file", "sha256", "created", "thumbnail",
               "embedding", "embedding_sha256", "layers_skipped",
               "provenance": {"data", "source", "sha256", "projected"},
               "settings": {...}, "requested": {...}, "metrics": {...}, "id"}, ...]}          in training order

"text_encoder" is the fingerprint of the one that the learned words belong to.  Versions before 3 had no learned words.
Version 1 had "config" in place of "settings" and "requested", and what is in "provenance" among the metrics.
"""

import dataclasses
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UserError, first_line
from ..model.architecture import BaseIdentity
from ..model.sd15 import LayerShape
from .manifest_check import check_document, check_unique
from .migration import concept_from_version_1
from .names import fold
from .spec import ConceptSpec

FORMAT = "seqlora-bank"
VERSION = 3
_HALF_CHARACTER = re.compile(rb"\\u[dD]")
MAX_BYTES = 64 * 2**20  # of bank.json, which takes about 15 kB per concept


@dataclass(frozen=True)
class Provenance:
    """Where a concept comes from.  Whether a concept is already in the bank is decided by this and its settings.

    Attributes:
        data: fingerprint of the images and captions that it was trained on; empty for an imported one.
        source: name of the file that it was imported from; empty for a trained one.
        sha256: of that file's bytes.
        projected: whether only what was orthogonal to the bank was imported.
    """

    data: str = ""
    source: str = ""
    sha256: str = ""
    projected: bool = False


@dataclass(frozen=True)
class Concept(ConceptSpec):
    """The record of one concept.

    Attributes:
        rank: of every layer that it adapts; the largest, where an imported one has several.
        file, thumbnail: relative to the bank's folder, with forward slashes; no thumbnail is an empty string.
        sha256: of the file's bytes.
        created: UTC, ISO 8601.
        embedding: the file of the learned word, likewise; empty if prompts call the concept by token and class word.
        embedding_sha256: of that file's bytes.
        layers_skipped: canonical names of layers that were full, or outside the preset, when it was trained.
        settings: everything that decided what its training run computed; empty for an imported one.
        requested: what the user asked for; None is what was left open.
        metrics: what was measured.
    """

    rank: int
    method: str
    file: str
    sha256: str
    created: str
    thumbnail: str = ""
    embedding: str = ""
    embedding_sha256: str = ""
    layers_skipped: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=Provenance)
    settings: dict = field(default_factory=dict)
    requested: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def subject(self) -> str:
        """The words for it in a prompt: its token alone where that is learned, else "sksdog dog"."""
        return self.token if self.embedding else super().subject

    @property
    def files(self) -> list[str]:
        """All its files, relative to the bank's folder."""
        return [name for name in (self.file, self.thumbnail, self.embedding) if name]

    def as_dict(self) -> dict:
        """JSON-ready values."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {**values, "provenance": dataclasses.asdict(self.provenance)}  # asdict copies curves number by number

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Concept":
        """From `as_dict`, leaving out names that this version does not know."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        provenance = Provenance(**values.get("provenance", {}))
        layers_skipped = tuple(values.get("layers_skipped", ()))
        return cls(**{**values, "provenance": provenance, "layers_skipped": layers_skipped})


@dataclass(frozen=True)
class Manifest:
    """A bank at one instant.

    Attributes:
        generation: grows with every change.
        text_encoder: fingerprint of the text encoder that the learned words belong to; empty as long as there is none.
    """

    base: BaseIdentity
    layers: dict[str, LayerShape]
    concepts: tuple[Concept, ...] = ()
    generation: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    text_encoder: str = ""

    def with_concepts(self, concepts: tuple[Concept, ...], text_encoder: str = "") -> "Manifest":
        """The next generation.

        Args:
            text_encoder: the one that the words belong to, where this manifest knows none.
        """
        has_words = any(concept.embedding for concept in concepts)
        return dataclasses.replace(
            self,
            concepts=concepts,
            generation=self.generation + 1,
            text_encoder=(self.text_encoder or text_encoder) if has_words else "",
        )

    def with_base(self, base: BaseIdentity, layers: Mapping[str, LayerShape]) -> "Manifest":
        """The next generation, of another base."""
        return dataclasses.replace(self, base=base, layers=dict(layers), generation=self.generation + 1)

    def find(self, name: str) -> Concept | None:
        """The concept of that name, or None; names differ by more than case and look (see `names.fold`)."""
        same = [concept for concept in self.concepts if fold(concept.name) == fold(name)]
        # Banks of earlier versions may have two names that look the same: the one that is meant is written exactly so.
        return next((concept for concept in same if concept.name == name.strip()), same[0] if same else None)

    def to_json(self) -> str:
        """The text of `bank.json`, with one line per concept: numbers on lines of their own take many times as long."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "id": self.id,
            "generation": self.generation,
            "base": dataclasses.asdict(self.base),
            "text_encoder": self.text_encoder,
            "layers": {name: shape._asdict() for name, shape in self.layers.items()},
        }
        head = json.dumps(document, indent=1, ensure_ascii=False).removesuffix("\n}")
        rows = ",\n".join(f"  {json.dumps(concept.as_dict(), ensure_ascii=False)}" for concept in self.concepts)
        return f'{head},\n "concepts": [\n{rows}\n ]\n}}'

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "Manifest":
        """Read the text of `bank.json`.

        Raises:
            UserError: it is not a bank's, is damaged, or is of a later version; names `source`.
        """
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise UserError(f"{source} is not the manifest of a SeqLoRA bank: choose a bank's folder.")
            version = document["version"]
            if type(version) is not int or version < 1:
                raise ValueError(f"its version is {str(version)[:20]!r}")
            if version > VERSION:
                raise UserError(f"{source} was written by a newer SeqLoRA: update the node pack to use this bank.")
            if version == 1:
                document["concepts"] = [concept_from_version_1(values) for values in document["concepts"]]
            check_document(document)
            if _HALF_CHARACTER.search(text if isinstance(text, bytes) else text.encode()):  # could not be written again
                json.dumps(document, ensure_ascii=False).encode()
            concepts = tuple(Concept.from_dict(values) for values in document["concepts"])
            check_unique(concepts)
            return cls(
                base=BaseIdentity(document["base"]["name"], document["base"]["fingerprint"]),
                layers={name: LayerShape(s["width"], s["out"]) for name, s in document["layers"].items()},
                concepts=concepts,
                generation=document["generation"],
                id=document["id"],
                text_encoder=document.get("text_encoder", ""),
            )
        except RecursionError as error:
            raise UserError(f"{source} is damaged (it is nested too deeply): restore it from a backup.") from error
        except KeyError as error:
            raise UserError(f"{source} is damaged (it has no {error}): restore it from a backup.") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{source} is damaged ({first_line(error)}): restore it from a backup.") from error
