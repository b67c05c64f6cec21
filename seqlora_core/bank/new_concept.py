"""A concept on its way into a bank."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from ..model.adapters import Adapter
from .manifest import Provenance
from .spec import ConceptSpec


@dataclass(frozen=True)
class NewConcept(ConceptSpec):
    """A concept on its way into a bank (attributes as `Concept`'s).

    Attributes:
        adapters: by canonical layer name.
        word: the vectors [k, w] of its learned word; None for a concept that is called by its token and class word.
        text_encoder: fingerprint of the text encoder that the word belongs to; empty if that is not known.
    """

    rank: int
    method: str
    adapters: Mapping[str, Adapter]
    provenance: Provenance = field(default_factory=Provenance)
    settings: dict = field(default_factory=dict)
    requested: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    thumbnail: Image.Image | None = None
    word: Tensor | None = None
    text_encoder: str = ""
