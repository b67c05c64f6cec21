"""Which tokens of a prompt are concepts' own words, as the host's CLIP tokenizes it, and a CLIP that notes them.

A conditioning holds, besides the embeddings, `model_conds`: tensors that the host repeats, concatenates and casts like
the embeddings, and passes to the UNet by name.  So what belongs to a prompt's tokens follows the prompt through nodes,
samplers and batches; `confined` reads it inside the UNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.conds as conds
import torch
from torch import Tensor

from ...seqlora_core.errors import UserError
from . import CLIP
from .words import inner_tokenizer

IDENTITY = "seqlora_concepts"  # which composition the rows are for
ROWS = "seqlora_rows"  # [1, T, C], the factor of each concept on each token
REGIONAL_TEXTS = "seqlora_regional_texts"  # [1, R, L, 768], the embeddings of the regions' prompts
REGIONAL_ROWS = "seqlora_regional_rows"  # [1, R, L, C]

Token = int | Tensor  # a number, or the vector of a learned word or embedding


@dataclass(frozen=True)
class OwnWords:
    """The words of C concepts in prompts.

    Attributes:
        identity: of the composition (see `confined.identify`).
        subjects: the words.
        strengths: [C].
    """

    identity: str
    subjects: Sequence[str]
    strengths: Tensor


def own_rows(clip: CLIP, tokens: dict[str, list[list[tuple]]], subjects: Sequence[str]) -> Tensor:
    """Mark the tokens that belong to each concept's own word: [tokens, C] of 0 and 1.

    Only the tokens count, not how a text was cut into weights and windows; of the words that match, the longest counts.

    Args:
        tokens: what CLIP's `tokenize` returned, or another node made of it.
        subjects: the words for each concept in prompts.
    """
    inner = inner_tokenizer(clip.tokenizer)
    if inner is None:
        raise UserError("The CLIP on the input clip is not Stable Diffusion 1.5's: connect the CLIP of the base model.")
    flat: list[Token] = [entry[0] for windows in tokens.values() for window in windows for entry in window]
    marks = (inner.start_token, inner.end_token, inner.pad_token)
    places = [place for place, token in enumerate(flat) if isinstance(token, Tensor) or token not in marks]
    content = [flat[place] for place in places]
    words = [inner.tokenizer(subject)["input_ids"][1:-1] for subject in subjects]
    rows = torch.zeros(len(flat), len(subjects))
    at = 0
    while at < len(content):
        found = [word for word in words if _starts(content[at:], word) and _begins_word(content, at, inner.inv_vocab)]
        length = max(map(len, found), default=1)
        for concept, word in enumerate(words):
            if found and len(word) == length and _starts(content[at:], word):
                rows[places[at : at + length], concept] = 1
        at += length
    return rows


def _starts(content: Sequence[Token], word: Sequence[Token]) -> bool:
    return 0 < len(word) <= len(content) and all(map(_same, content, word))


def _same(one: Token, other: Token) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one.float().cpu(), other.float().cpu())
    return type(one) is type(other) and one == other


def _begins_word(content: Sequence[Token], at: int, texts: dict[int, str]) -> bool:
    """Whether the token before one ends a word: the vocabulary marks those that do."""
    before = content[at - 1] if at else None
    return not isinstance(before, int) or texts.get(before, "").endswith("</w>")


def rows_cond(identity: str, rows: Tensor) -> dict[str, conds.CONDRegular]:
    """The `model_conds` of a prompt without regions.

    The host repeats the shorter of two prompts until both are equally long, and rows of this kind in the same way.

    Args:
        rows: [T, C], the factor of each concept on each token.
    """
    return {IDENTITY: conds.CONDConstant(identity), ROWS: conds.CONDCrossAttn(rows[None])}


class OwnWordsCLIP(CLIP):
    """A CLIP whose conditionings note the tokens of concepts' own words; made by `noting`."""

    own_words: OwnWords

    def clone(self, *args, **kwargs) -> CLIP:
        return noting(super().clone(*args, **kwargs), self.own_words)

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        encoded = super().encode_from_tokens(tokens, return_pooled, return_dict)
        if return_dict:
            self._note(tokens, encoded, encoded["cond"])
        return encoded

    def encode_from_tokens_scheduled(self, tokens, *args, **kwargs):
        schedule = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        for cond, values in schedule:
            self._note(tokens, values, cond)
        return schedule

    def _note(self, tokens: dict, values: dict, cond: Tensor) -> None:
        words = self.own_words
        rows = own_rows(self, tokens, words.subjects)
        if len(rows) != cond.shape[1]:
            raise UserError(
                f"Another node has changed the CLIP: it makes {cond.shape[1]} embeddings of {len(rows)} tokens, so own "
                "words cannot be found; connect Compose Concepts behind that node, or set acts_on to everything."
            )
        values["model_conds"] = {
            **values.get("model_conds", {}),
            **rows_cond(words.identity, rows * words.strengths),
        }


def noting(clip: CLIP, words: OwnWords) -> CLIP:
    """Have a CLIP, which nothing else uses, note own words in the conditionings that it makes."""
    clip.__class__, clip.own_words = OwnWordsCLIP, words
    return clip
