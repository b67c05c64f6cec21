"""Exceptions that callers handle separately."""


class UserError(Exception):
    """A user-correctable error; the message is one sentence that says what is wrong and how to fix it."""


class Cancelled(Exception):
    """The user stopped the training run; the checkpoint holds everything up to the last finished step."""


class TrainingDiverged(ArithmeticError):
    """The loss or its gradient is no longer finite, so continuing would destroy the concept."""


class TrainingExploded(TrainingDiverged):
    """The loss is finite but far above where it began; the concept is stored only if the user says so."""
