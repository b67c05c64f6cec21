"""The errors that callers tell apart."""


class UserError(Exception):
    """A mistake that the user can mend; the message is one sentence that says how."""


class Cancelled(Exception):
    """The user stopped the training; everything up to the last finished step is in the checkpoint."""


class TrainingDiverged(ArithmeticError):
    """The loss or its gradient is no longer finite, so going on would only destroy the concept."""
