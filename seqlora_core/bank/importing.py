"""Any SD1.5 LoRA file as a concept of a bank, with or without a projection off what the bank's concepts occupy."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .. import subspace
from ..data.prompts import shorten
from ..errors import UserError
from ..hashing import sha256
from ..model.adapters import Adapter, update_norm
from ..monitor import Monitor, wait_for_others
from . import Bank, Concept, NewConcept, Provenance, embedding_file, foreign_lora
from .inspection import OVERLAP_LIMIT, overlaps_with
from .spec import ConceptSpec

METHOD = "import"
_LONGEST_WORD = 100  # characters; a longer name in a file is nothing that people type


def import_lora(
    bank: Bank,
    path: Path,
    spec: ConceptSpec,
    project: bool = False,
    replace: bool = False,
    monitor: Monitor | None = None,
    embedding: Path | None = None,
    text_encoder: str = "",
) -> Concept:
    """Add the attention layers of a LoRA file and a learned word, or either of them, to a bank.

    The same files imported again are found and left as they are.

    Args:
        path: a LoRA, which may carry words itself, or a textual inversion alone.
        project: replace each dW by dW P, of all matrices that vanish on the bank's directions Q the closest to it.
        replace: an existing concept of that name gives way.
        embedding: a textual inversion, whose vectors become the word `spec.token`.
        text_encoder: fingerprint of the one that the word belongs to; empty if that is not known.

    Raises:
        UserError: the file cannot be used (see `foreign_lora.read`), the name is taken, or the projection leaves
            nothing.
    """
    monitor = monitor or Monitor()
    bank.refresh()
    word = _read_word(path, embedding, spec, monitor)
    has_lora = not embedding_file.is_embedding(foreign_lora.open_file(path))
    lora = foreign_lora.read(path, bank.manifest.layers) if has_lora else foreign_lora.NOTHING
    content = path.read_bytes() + (embedding.read_bytes() if embedding else b"")
    provenance = Provenance(source=path.name, sha256=sha256(content), projected=project and has_lora)
    with bank.training(wait_for_others(monitor)):
        existing = bank.manifest.find(spec.name)
        if existing and _same_import(existing, spec, provenance):
            return existing
        if not replace:
            bank.require_free(spec.name)
        for note in bank.check_words(spec):
            monitor.message(note)
        others, damaged = bank.load_intact(without=spec.name)
        for problem in damaged:
            monitor.message(f"{problem} Its directions cannot be taken into account.")
        outside = project_off(lora.adapters, bank.spanned_by(others))
        if project and has_lora and not outside:
            raise UserError(
                f"Nothing of {path.name} lies outside of what the bank's concepts occupy: import it without the "
                "projection, or into another bank."
            )
        adapters = outside if project else lora.adapters
        metrics = {
            "remaining": _norm(outside) / _norm(lora.adapters) if has_lora else 1.0,
            "least_remaining": _least_remaining(lora.adapters, outside) if has_lora else 1.0,
            "left_out": lora.left_out,
            "partly": lora.partly,
            "share": lora.share,
            "alpha_known": lora.alpha_known,
            "uncounted": lora.uncounted,
        }
        new = NewConcept(
            spec.name,
            spec.token,
            spec.class_word,
            max((adapter.rank for adapter in adapters.values()), default=1),
            METHOD,
            adapters,
            provenance,
            metrics=metrics,
            word=word,
            text_encoder=text_encoder,
        )
        return bank.add(new, replace)


def word_in(path: Path) -> str:
    """Return the name of the only learned word in a file, a LoRA or a textual inversion; empty if there is not one."""
    file = foreign_lora.open_file(path)
    single = embedding_file.is_embedding(file)
    words = [embedding_file.read(path)[0]] if single else list(embedding_file.bundled_words(file))
    return words[0] if len(words) == 1 and len(words[0]) <= _LONGEST_WORD else ""


def _read_word(path: Path, embedding: Path | None, spec: ConceptSpec, monitor: Monitor) -> Tensor | None:
    """The vectors of the concept's word: of the textual inversion, or those of its token that the LoRA file carries."""
    file = foreign_lora.open_file(path)
    if embedding is not None or embedding_file.is_embedding(file):
        return embedding_file.read(embedding or path)[1]
    words = embedding_file.bundled_words(file)
    found = {word: vectors for word, vectors in words.items() if word.casefold() == spec.token.casefold()}
    left_out = [word for word in words if word not in found]
    if left_out:
        shown = ", ".join(map(shorten, left_out))
        monitor.message(
            f"{path.name} carries the learned words {shown}, which are left out: a concept has only the word of its "
            f"token, {spec.token!r}."
        )
    return next(iter(found.values()), None)


def project_off(adapters: Mapping[str, Adapter], Q: Mapping[str, Tensor]) -> dict[str, Adapter]:
    """`dW P = A (P B)^T` for every layer; layers that lie in span(Q) but for rounding are gone."""
    projected = {}
    for layer, adapter in adapters.items():
        A, B = adapter.factors
        outside = subspace.project(B.double(), Q[layer])
        if outside.norm() > subspace.RANK_TOLERANCE * B.double().norm():
            projected[layer] = Adapter.from_factors(A, outside.float())
    return projected


def describe_import(bank: Bank, concept: Concept) -> str:
    """What was taken from the file, what was not, and how it fits among the bank's concepts."""
    facts, layers = concept.metrics, len(bank.manifest.layers)
    lines = [
        f"{concept.name}: '{concept.subject}' from {concept.provenance.source}; "
        f"{layers - len(concept.layers_skipped)} of {layers} attention layers, rank {concept.rank}"
        f"{', with a learned word' if concept.embedding else ''}."
    ]
    if len(concept.layers_skipped) == layers:
        return f"{concept.name}: the word '{concept.subject}' from {concept.provenance.source}, without a LoRA."
    left_out = [f"{count} {kind}" for kind, count in facts.get("left_out", {}).items() if count]
    if left_out:
        lines.append(
            f"Left out, because a bank holds attention layers only: {', '.join(left_out)} layers. "
            f"{foreign_lora.describe_share(facts.get('share') or 0.0, facts.get('uncounted', 0))}"
        )
    if partly := facts.get("partly", 0):  # which concepts of the version before do not have
        lines.append(
            f"Left out in {partly} attention layers as well: changes of their biases, or of whole weights next to the "
            "factors, which are no sums of directions."
        )
    if not facts.get("alpha_known", True):
        lines.append("The file does not tell its alpha; it was taken as the rank, as other tools do.")
    return "\n".join([*lines, *_describe_overlap(bank, concept)])


def _describe_overlap(bank: Bank, concept: Concept) -> list[str]:
    facts, overlaps = concept.metrics, overlaps_with(bank, concept)
    if not overlaps:
        return ["The bank has no other concept."]
    remaining, least = (facts.get(name) or 0.0 for name in ("remaining", "least_remaining"))
    shares = f"{remaining:.0%} of |dW| (at least {least:.0%} in every layer)"
    if concept.provenance.projected:
        lines = [f"Projected off the bank's concepts: {shares} remains."]
    else:
        lines = [f"Not projected: {shares} lies outside of the directions that the bank's concepts occupied."]
    lines += [f"Overlap with {name}: {value:.1e}" for name, value in overlaps.items()]
    if max(overlaps.values()) > OVERLAP_LIMIT:
        lines.append("It is not orthogonal to all of them, so sums with it can bleed into each other.")
    return lines


def _same_import(existing: Concept, spec: ConceptSpec, provenance: Provenance) -> bool:
    same_words = (existing.token, existing.class_word) == (spec.token, spec.class_word)
    return existing.method == METHOD and same_words and existing.provenance == provenance


def _least_remaining(whole: Mapping[str, Adapter], outside: Mapping[str, Adapter]) -> float:
    return min(update_norm(outside[layer]) / update_norm(whole[layer]) if layer in outside else 0.0 for layer in whole)


def _norm(adapters: Mapping[str, Adapter]) -> float:
    """|dW| over all layers (Frobenius)."""
    return math.hypot(*map(update_norm, adapters.values()))
