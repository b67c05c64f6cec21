"""The texts of regions as conditionings of the host: each prompt's own, with those of the regions beside it."""

import math
from collections.abc import Iterable, Sequence

import comfy.conds as conds
import torch
from torch import Tensor

from ...seqlora_core.composition.confinement import Confinement
from . import CLIP
from .own_words import REGIONAL_ROWS, REGIONAL_TEXTS, own_rows, rows_cond

Conditioning = list[list]  # of [embeddings [1, T, 768], values]


class RegionalTexts:
    """The global negative prompt and prompt, and those of each region, tokenized once.

    A prompt that is longer than the host's window of 77 tokens takes several windows.  Repeating a prompt changes
    nothing in attention, so shorter texts are repeated to a common multiple.

    Args:
        texts: from `confinement.texts_of`.
        subjects: the words for each of C concepts in prompts.
    """

    def __init__(self, clip: CLIP, texts: Sequence[tuple[str, str]], subjects: Sequence[str]) -> None:
        self._clip, self._texts = clip, texts
        self._tokens = {prompt: clip.tokenize(prompt) for pair in texts for prompt in pair}
        self._rows = {prompt: own_rows(clip, tokens, subjects) for prompt, tokens in self._tokens.items()}

    def rows(self) -> Tensor:
        """Return the tokens of each concept's own word, [texts, 2, T, C] (see `confinement.confine_rows`)."""
        length = self._common_length(self._tokens)
        return torch.stack([_repeated([self._rows[prompt] for prompt in pair], length) for pair in self._texts])

    def conditioning(self, side: int, confinement: Confinement, identity: str) -> Conditioning:
        """Encode the prompts of one side: 0 for the negative ones, 1 for the others.

        Args:
            confinement: made of `rows`.
            identity: see `confined.identify`.
        """
        prompt, *regional = [pair[side] for pair in self._texts]
        factors = confinement.text[:, side]  # [texts, T, C]
        values = rows_cond(identity, factors[0, : len(self._rows[prompt])])
        if regional:
            length = self._common_length(text for pair in self._texts[1:] for text in pair)
            encoded = [self._clip.encode_from_tokens(self._tokens[text])[0] for text in regional]
            values[REGIONAL_TEXTS] = conds.CONDRegular(_repeated(encoded, length)[None])
            values[REGIONAL_ROWS] = conds.CONDRegular(factors[None, 1:, :length])
        schedule = self._clip.encode_from_tokens_scheduled(self._tokens[prompt])
        return [[cond, {**own, "model_conds": {**own.get("model_conds", {}), **values}}] for cond, own in schedule]

    def _common_length(self, prompts: Iterable[str]) -> int:
        return math.lcm(*(len(self._rows[prompt]) for prompt in prompts))


def _repeated(texts: Sequence[Tensor], length: int) -> Tensor:
    """Repeat texts [T, w] up to a length, as [texts, length, w]."""
    return torch.stack([text.repeat(length // len(text), 1) for text in texts])
