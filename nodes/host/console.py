"""What the host's console says of a training run and of a user's mistake."""

import logging
import sys

from ...seqlora_core.errors import UserError


class _WithoutTracebacks(logging.Filter):
    """Drops the traceback of a UserError; the host logs its sentence, which is all that helps, separately."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (isinstance(sys.exc_info()[1], UserError) and record.getMessage().startswith("Traceback"))


def say(text: str) -> None:
    """Write a line to the host's log, and with it to the console."""
    logging.info("SeqLoRA: %s", text)


def shorten_user_errors() -> None:
    """Keep tracebacks of user errors out of the host's log."""
    logging.getLogger().addFilter(_WithoutTracebacks())
