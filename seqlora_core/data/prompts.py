"""The prompts of reference images: their captions, or neutral templates around the subject."""

from ..errors import UserError

PHOTO_OF = "photo of a"
SUBJECT_TEMPLATE = f"{PHOTO_OF} {{}}"  # for everything but training: evaluation, previews, protected prompts, fusions
# The wording of Textual Inversion's and DreamBooth's neutral templates: they say nothing that could bind to the token.
TEMPLATES = (
    SUBJECT_TEMPLATE,
    "a photo of a {}",
    "a close-up photo of a {}",
    "a good photo of a {}",
    "a photo of one {}",
    "a rendering of a {}",
)


def subject_prompt(subject: str) -> str:
    """The prompt that shows a subject and nothing else."""
    return SUBJECT_TEMPLATE.format(subject)


def template_prompts(subject: str) -> tuple[str, ...]:
    """The templates around a subject."""
    return tuple(template.format(subject) for template in TEMPLATES)


def caption_prompts(captions: str, subject: str, pictures: int) -> list[tuple[str, ...]]:
    """The prompts of each picture: its line of `captions`, or one line for all; templates where there is none.

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
