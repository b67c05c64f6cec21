"""A CLIP that knows learned words: the stock nodes, and ours, encode prompts that name them.

The host's tokenizer cuts a prompt into segments of one weight each, takes `embedding:NAME` out of them, and has Hugging
Face's tokenizer turn the rest into numbers; in the place of a number it may have a vector.  So a copy whose inner
tokenizer returns a word's vectors understands weights, punctuation and embeddings as before.  Everything that clones
the CLIP later (LoRA loaders, CLIP skip) passes the tokenizer on.
"""

import copy
from collections.abc import Iterable

from torch import Tensor

from ...seqlora_core.data.words import NO_WORDS, Words, split_at_words
from ...seqlora_core.errors import UserError
from ...seqlora_core.model.sd15 import SD15
from . import CLIP


class _KnowingTokenizer:
    """Hugging Face's tokenizer of a CLIP, except that vectors stand in the places of words."""

    def __init__(self, plain: object, words: Words) -> None:
        self.plain, self.words = plain, words

    def __call__(self, text: str, *args: object, **kwargs: object) -> object:
        pieces = split_at_words(text, self.words)
        if all(word is None for _, word in pieces):
            return self.plain(text, *args, **kwargs)
        start, end = self.plain("")["input_ids"]
        tokens: list[int | Tensor] = []
        for piece, word in pieces:
            tokens += self.plain(piece)["input_ids"][1:-1] if word is None else self.words[word].unbind()
        return {"input_ids": [start, *tokens, end]}

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["plain"], name)


def known_words(clip: CLIP) -> Words:
    """The words that a CLIP knows, with their vectors [k, 768]."""
    own = getattr(inner_tokenizer(clip.tokenizer), "tokenizer", None)
    return own.words if isinstance(own, _KnowingTokenizer) else NO_WORDS


def knowing_words(clip: CLIP, words: Words) -> CLIP:
    """A clone of a CLIP that knows these words besides those that it already knows; the CLIP itself is not changed.

    Raises:
        UserError: the vectors of a word do not fit the CLIP.
    """
    clone = clip.clone()
    teach(clone, words)
    return clone


def teach(clip: CLIP, words: Words) -> None:
    """Give a CLIP a tokenizer that knows these words besides its own; others that have its tokenizer are not changed.

    Raises:
        UserError: as `knowing_words`.
    """
    if not words:
        return
    inner = inner_tokenizer(clip.tokenizer)
    widths = {vectors.shape[-1] for vectors in words.values()}
    if inner is None or widths != {getattr(inner, "embedding_size", None)}:
        raise UserError(
            f"The CLIP on the input clip cannot use the learned word {next(iter(words))!r}: connect the CLIP of the "
            f"bank's base model, a {SD15.name}."
        )
    plain = inner.tokenizer.plain if isinstance(inner.tokenizer, _KnowingTokenizer) else inner.tokenizer
    outer, inner = copy.copy(clip.tokenizer), copy.copy(inner)
    inner.tokenizer = _KnowingTokenizer(plain, {**_without(known_words(clip), words), **words})
    setattr(outer, outer.clip, inner)
    clip.tokenizer = outer


def inner_tokenizer(tokenizer: object) -> object | None:
    """The only part of the host's tokenizer of a Stable Diffusion 1 CLIP; None for a CLIP of another kind."""
    return getattr(tokenizer, getattr(tokenizer, "clip", ""), None)


def _without(words: Words, replaced: Iterable[str]) -> dict[str, Tensor]:
    folded = {word.casefold() for word in replaced}
    return {word: vectors for word, vectors in words.items() if word.casefold() not in folded}
