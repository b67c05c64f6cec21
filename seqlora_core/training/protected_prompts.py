"""The prompts whose images a training run leaves as they are."""

from ..bank import Bank
from ..bank.spec import ConceptSpec
from ..data.prompts import subject_prompt

EMPTY_PROMPT_COUNT = 4  # to keep beside one of each concept
# To keep as well: invented subjects, for all that a bank does not hold yet, and ordinary ones, for all else.
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
COMMON_SUBJECTS = ("tree", "house", "person", "plant", "toy", "food", "boat", "animal")
COMMON_SUBJECTS += ("street", "mountain", "book", "chair", "clock", "bridge", "shoe", "cloud")


def protected_prompts(bank: Bank, spec: ConceptSpec) -> list[str]:
    """Prompts whose pictures a training should leave as they are (see `crosstalk`).

    One for every concept of the bank, but for the one that a training is to replace; `PLACEHOLDER_SUBJECTS`, or a basis would turn
    to what only later concepts read, and they would find it answering to their words; `COMMON_SUBJECTS` subjects, which stand
    for the rest of the world; and some empty ones, since guidance subtracts what the model makes of it from every
    picture.  None of the invented and ordinary ones is of the new concept's class: it lives by its class word.
    """
    replaced = bank.manifest.find(spec.name)
    subjects = [concept.subject for concept in bank.concepts if concept is not replaced]
    own = spec.class_word.casefold().split()
    subjects += [f"{token} {class_word}" for token, class_word in PLACEHOLDER_SUBJECTS if class_word not in own]
    subjects += [word for word in COMMON_SUBJECTS if word not in own]
    return [subject_prompt(subject) for subject in subjects] + [""] * EMPTY_PROMPT_COUNT
