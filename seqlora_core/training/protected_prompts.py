"""The prompts whose images a training run must leave as they are (see `interference_penalty`)."""

from collections.abc import Sequence

from ..bank import Concept
from ..data.prompts import subject_prompt

EMPTY_PROMPT_COUNT = 4  # guidance subtracts what the model makes of the empty prompt from every image
# Invented subjects stand for concepts that the bank does not hold yet.  Without them a basis would turn to directions
# that only later concepts use, and the new concept would answer to their words.
PLACEHOLDER_SUBJECTS = (
    ("sksarbo", "tree"),
    ("skslumi", "house"),
    ("sksquet", "person"),
    ("skstrev", "plant"),
    ("sksbimp", "toy"),
    ("sksoldo", "food"),
    ("skskran", "boat"),
    ("skswilf", "animal"),
)
# Common subjects stand for the rest of the world.
COMMON_SUBJECTS = ("tree", "house", "person", "plant", "toy", "food", "boat", "animal")
COMMON_SUBJECTS += ("street", "mountain", "book", "chair", "clock", "bridge", "shoe", "cloud")


def protected_prompts(concepts: Sequence[Concept], class_word: str) -> list[str]:
    """One prompt for every concept, for invented and common subjects, and some empty ones.

    Invented and common subjects of the new concept's own class are left out, because it is called by its class word.

    Args:
        concepts: the bank's, without the one that is about to be replaced.
        class_word: the new concept's.
    """
    own = class_word.casefold().split()
    subjects = [concept.subject for concept in concepts]
    subjects += [f"{token} {word}" for token, word in PLACEHOLDER_SUBJECTS if word not in own]
    subjects += [word for word in COMMON_SUBJECTS if word not in own]
    return [subject_prompt(subject) for subject in subjects] + [""] * EMPTY_PROMPT_COUNT
