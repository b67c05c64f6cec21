"""Exceptions that callers handle separately, and what a message says of other libraries' ones."""


class UserError(Exception):
    """A user-correctable error; the message is one sentence that says what is wrong and how to fix it."""


class Cancelled(Exception):
    """The user stopped the training run; the checkpoint holds everything up to the last finished step."""


class TrainingDiverged(ArithmeticError):
    """The loss or its gradient is no longer finite, so continuing would destroy the concept."""


class TrainingExploded(TrainingDiverged):
    """The loss is finite but far above where it began; the concept is stored only if the user says so."""


class EndedTogether(Exception):
    """A process of a training run ends because of an error that another process of the run reports."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, at most 200 characters, for a sentence; its kind if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
