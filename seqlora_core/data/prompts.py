"""Neutral prompts around a subject, and prompts that are too long."""

import re
from collections.abc import Callable, Iterable

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
_WEIGHTED = re.compile(r"\(([^()]+):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
_SHOWN = 60  # characters of a prompt in a message


def subject_prompt(subject: str) -> str:
    """The prompt that shows a subject and nothing else."""
    return SUBJECT_TEMPLATE.format(subject)


def template_prompts(subject: str) -> tuple[str, ...]:
    """Put a subject into the templates."""
    return tuple(template.format(subject) for template in TEMPLATES)


def prefixed(prefix: str, prompts: Iterable[str]) -> tuple[str, ...]:
    """Put a prefix and a space before prompts; an empty prefix leaves them as they are."""
    return tuple(f"{prefix.strip()} {prompt}" if prefix.strip() else prompt for prompt in prompts)


def split_at_weights(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt at weights like "(sksdog:1.2)" into (text, weight); the texts joined are the prompt without them.

    Parentheses without a number stay as they are.
    """
    pieces, end = [], 0
    for match in _WEIGHTED.finditer(prompt):
        pieces += [(prompt[end : match.start()], 1.0), (match[1], float(match[2]))]
        end = match.end()
    return [(text, weight) for text, weight in (*pieces, (prompt[end:], 1.0)) if text]


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
        f"{cut[longest]}: {shorten(longest)}."
    ]


def shorten(text: str) -> str:
    return f"'{text}'" if len(text) <= _SHOWN else f"'{text[:_SHOWN].rstrip()}...'"
