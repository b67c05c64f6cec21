"""Words of a bank inside prompts: a concept's token, for which its learned vectors stand."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from torch import Tensor

Words = Mapping[str, Tensor]  # token -> [k, w], its vectors in the place of the text encoder's input embeddings
NO_WORDS: Words = MappingProxyType({})


def split_at_words(prompt: str, words: Iterable[str]) -> list[tuple[str, str | None]]:
    """Split a prompt into (text, None) and (text, word) pieces, in order; the texts joined are the prompt.

    A word matches whole words only, in any case, and the longest word that matches wins: with the words "sksdog" and
    "sksdog2", "sksdog2" is never read as "sksdog" and "2".
    """
    pattern, by_fold = _pattern(tuple(words))
    if pattern is None:
        return [(prompt, None)] if prompt else []
    pieces: list[tuple[str, str | None]] = []
    end = 0
    for match in pattern.finditer(prompt):
        if match.start() > end:
            pieces.append((prompt[end : match.start()], None))
        pieces.append((match[0], by_fold[match[0].casefold()]))
        end = match.end()
    return pieces + ([(prompt[end:], None)] if end < len(prompt) else [])


def named_words(prompts: Iterable[str], words: Sequence[str]) -> list[str]:
    """Return those of the words that a prompt names, in their order."""
    named = {word for prompt in prompts for _, word in split_at_words(prompt, words) if word is not None}
    return [word for word in words if word in named]


@lru_cache(maxsize=64)
def _pattern(words: tuple[str, ...]) -> tuple[re.Pattern | None, dict[str, str]]:
    """A pattern of all words, and each word by its case-folded form; of words that differ in case the first counts."""
    by_fold: dict[str, str] = {}
    for word in words:
        by_fold.setdefault(word.casefold(), word)
    if not by_fold:
        return None, {}
    longest_first = sorted(by_fold.values(), key=len, reverse=True)
    # Look-around instead of \b: a token may begin or end with something else than a letter, as "<dog>" does.
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE), by_fold
