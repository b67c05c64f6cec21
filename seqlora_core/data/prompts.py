"""The prompts of reference images: their captions, or neutral templates around the subject."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from ..errors import UserError

PHOTO_OF = "photo of a"
SUBJECT_TEMPLATE = f"{PHOTO_OF} {{}}"  # for everything but training: evaluation, previews, protected prompts, fusions
# The wording of the neutral templates of Textual Inversion and DreamBooth: nothing in it could bind to the token.
TEMPLATES = (
    SUBJECT_TEMPLATE,
    "a photo of a {}",
    "a close-up photo of a {}",
    "a good photo of a {}",
    "a photo of one {}",
    "a rendering of a {}",
)
MAX_TOKENS = 77  # of CLIP's text encoder, with the two that begin and end a prompt
_SHOWN = 60  # characters of a prompt in a message


def subject_prompt(subject: str) -> str:
    """The prompt that shows a subject and nothing else."""
    return SUBJECT_TEMPLATE.format(subject)


def template_prompts(subject: str) -> tuple[str, ...]:
    """Put a subject into the templates."""
    return tuple(template.format(subject) for template in TEMPLATES)


def caption_prompts(captions: str, subject: str, pictures: int) -> list[tuple[str, ...]]:
    """Assign the lines of `captions` to images: one line per image, or one for all; templates if there is no line.

    Args:
        pictures: the number of images.

    Raises:
        UserError: the number of lines fits neither.
    """
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if not lines:
        return [template_prompts(subject)] * pictures
    if len(lines) not in (1, pictures):
        raise UserError(
            f"There are {len(lines)} captions for {pictures} pictures: give one line for each, or one for all."
        )
    return [(line,) for line in (lines if len(lines) == pictures else lines * pictures)]


def describe_missing_token(captions: Sequence[str], token: str) -> list[str]:
    """Report how many captions lack the token, as sentences (none if all have it); case does not matter to CLIP."""
    lacking = [caption for caption in captions if _plain(token) not in _plain(caption)]
    if not lacking:
        return []
    return [
        f"{len(lacking)} of {len(captions)} captions do not contain the token '{token}', so nothing of those images "
        f"binds to it; for example: {_shorten(lacking[0])}."
    ]


def describe_cut_prompts(prompts: Iterable[str], count: Callable[[str], int], limit: int = MAX_TOKENS) -> list[str]:
    """Report how many prompts are cut when they are encoded, as sentences (none if all fit).

    Args:
        count: the number of tokens of a prompt, with those that begin and end it.
        limit: the most tokens that are encoded.
    """
    lengths = {prompt: count(prompt) for prompt in dict.fromkeys(prompts)}
    cut = {prompt: length for prompt, length in lengths.items() if length > limit}
    if not cut:
        return []
    longest = max(cut, key=cut.__getitem__)
    return [
        f"{len(cut)} of {len(lengths)} texts are longer than {limit} tokens and are cut there; the longest has "
        f"{cut[longest]}: {_shorten(longest)}."
    ]


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _shorten(text: str) -> str:
    return f"'{text}'" if len(text) <= _SHOWN else f"'{text[:_SHOWN].rstrip()}...'"
