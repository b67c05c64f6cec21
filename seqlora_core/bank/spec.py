"""A concept's name, token and class word."""

from dataclasses import dataclass

from . import names


@dataclass(frozen=True)
class ConceptSpec:
    """What a concept is called: by people (its name) and in prompts (its token and class word).

    Raises:
        UserError: one of the three is empty or cannot be used.
    """

    name: str
    token: str
    class_word: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", names.check_name(self.name))
        object.__setattr__(self, "token", names.check_word(self.token, "token"))
        object.__setattr__(self, "class_word", names.check_word(self.class_word, "class word"))

    @property
    def subject(self) -> str:
        """The words for it in a prompt: "sksdog dog"."""
        return f"{self.token} {self.class_word}"
