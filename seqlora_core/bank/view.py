"""What a page shows of a bank: its concepts and its capacity, as JSON-ready values read from the manifest alone."""

import math

from .bank import Bank
from .inspection import fullest_layer, missing_files
from .manifest import Concept


def view(bank: Bank) -> dict[str, object]:
    """Describe a bank and its concepts, in training order.

    Returns:
        "id", "generation", "base" (its name), "free" and "width" (directions of the fullest layer), "problems" (one
        sentence per missing file), and "concepts", see `concept_view`.
    """
    free, width = fullest_layer(bank)
    return {
        "id": bank.manifest.id,
        "generation": bank.manifest.generation,
        "base": bank.manifest.base.name,
        "free": free,
        "width": width,
        "problems": missing_files(bank),
        "concepts": [concept_view(concept) for concept in bank.concepts],
    }


def concept_view(concept: Concept) -> dict[str, object]:
    """Describe a concept.

    Returns:
        "id", "name", "words" (for prompts), "token", "class_word", "learned" (whether it has a word of its own),
        "method", "rank", "created" (UTC, ISO 8601), "final_loss" (None if there is none), "source" (of an imported
        one), and whether it has a "thumbnail".
    """
    loss = concept.metrics.get("final_loss")
    known = isinstance(loss, (int, float)) and math.isfinite(loss)
    return {
        "id": concept.id,
        "name": concept.name,
        "words": concept.subject,
        "token": concept.token,
        "class_word": concept.class_word,
        "learned": bool(concept.embedding),
        "method": concept.method,
        "rank": concept.rank,
        "created": concept.created,
        "final_loss": float(loss) if known else None,
        "source": concept.provenance.source,
        "thumbnail": bool(concept.thumbnail),
    }
