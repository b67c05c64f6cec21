"""The rows of text embeddings on which a concept acts that is trained with `acts_on` own-words."""

from functools import cache

from torch import Tensor

from ..bank import ConceptSpec
from ..data.dataset import EncodedConcept
from ..data.own_words import own_word_rows
from ..data.words import Words
from ..errors import UserError
from ..model.text_encoder import TextEncoder
from .config import ResolvedConfig
from .plan import trained_subject


def mark_own_rows(
    data: EncodedConcept, spec: ConceptSpec, config: ResolvedConfig, encoder: TextEncoder, words: Words
) -> EncodedConcept:
    """Mark, in the prompts of all examples, the tokens of the concept's own word.

    Args:
        words: all learned words that prompts may name, the concept's own among them.

    Raises:
        UserError: no prompt of the concept's images names it.
    """
    subject, tokens = trained_subject(spec, config), data.examples[0].prompts.shape[1]

    def count(text: str) -> int:
        return encoder.count_tokens(text, words)

    @cache  # most images of a concept have the same prompts
    def mark(texts: tuple[str, ...]) -> Tensor:
        return own_word_rows(texts, [subject], count, tokens, words)[0]

    marked = data.with_own_rows(mark)
    if not any(example.own_rows.any() for example in marked.examples):
        raise UserError(
            f"No caption contains {subject!r} in its first {tokens} tokens, and with acts_on own-words a concept acts "
            "on nothing else: put it into the captions, or set acts_on to everything."
        )
    return marked
