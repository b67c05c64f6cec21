"""Find the tokens of a prompt that belong to a concept's own word, on whose keys and values alone it may act.

The token mask of TARA (AAAI 2026): a concept that changes only the rows of its own word leaves those of the other
concepts in the prompt as they are, however many are loaded.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .prompts import split_at_weights
from .words import split_at_words


def own_word_pieces(prompt: str, words: Iterable[str]) -> list[tuple[str, str | None]]:
    """Split a prompt into (text, the word that it belongs to), in order.

    Weights like "(sksdog:1.2)" are left out.  A piece ends where a word or a weighted part does, because encoders
    tokenize these separately; so the tokens of the pieces in a row are those of the prompt.

    Args:
        words: the words for concepts in prompts, and all learned words; of those that match, the longest counts.
    """
    weighted = [text for text, _ in split_at_weights(prompt)]
    text = "".join(weighted)
    named = split_at_words(text, words)
    ends = list(accumulate(len(part) for part, _ in named))
    borders = sorted({0, *accumulate(map(len, weighted)), *ends})
    return [
        (text[start:end], next(word for (_, word), last in zip(named, ends, strict=True) if end <= last))
        for start, end in pairwise(borders)
    ]


def own_word_rows(
    prompts: Sequence[str], subjects: Sequence[str], count: Callable[[str], int], tokens: int, words: Iterable[str] = ()
) -> Tensor:
    """Mark the rows of text embeddings, and so of keys and values, that belong to each concept's own word.

    Args:
        prompts: one per row of the batch, such as the negative prompt and the prompt.
        subjects: the words for each concept in prompts (see `composition.selection.SelectedConcept`).
        count: the number of tokens of a text, with the two that begin and end it.
        tokens: length of an encoded prompt; what is beyond it is cut.
        words: all learned words that the prompts may name.

    Returns:
        [concepts, prompts, tokens] of 0 and 1.
    """
    rows = torch.zeros(len(subjects), len(prompts), tokens)
    known = [*subjects, *words]
    for row, prompt in enumerate(prompts):
        place = 1  # after the start token
        for text, word in own_word_pieces(prompt, known):
            end = min(place + count(text) - 2, tokens - 1)  # the last token always is an end token
            for concept, subject in enumerate(subjects):
                if word is not None and word.casefold() == subject.casefold():
                    rows[concept, row, place:end] = 1
            place = end
    return rows
