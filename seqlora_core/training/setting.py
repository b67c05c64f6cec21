"""One setting of a training run as a dataclass field, with what the command line and the nodes make of it."""

import dataclasses
import math
from dataclasses import field

from ..errors import UserError

LONGEST_TEXT = 500  # characters; a prompt has room for 77 tokens
LARGEST_WHOLE_NUMBER = 2**62  # torch has 64 bits, and JSON files and floats no bound of their own


def setting(
    default: object,
    text: str,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    unset: str = "",
) -> object:
    """A field.

    Args:
        text: one line of help.
        least, most: bounds of a number, both allowed.
        unset: what None means, for settings that may be left open.
    """
    return field(
        default=default, metadata={"help": text, "choices": choices, "least": least, "most": most, "unset": unset}
    )


def check_setting(entry: dataclasses.Field, value: object) -> None:
    """Raises UserError where a value is none of the choices, out of range or no single line of text."""
    choices, least, most = (entry.metadata[key] for key in ("choices", "least", "most"))
    if choices and value not in choices:
        raise UserError(f"{entry.name} must be one of {', '.join(choices)}, not {value!r}.")
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE_NUMBER:
        raise UserError(f"{entry.name} must be a number of fewer than 20 digits: lower it.")
    if least is not None and not (math.isfinite(value) and value >= least):
        raise UserError(f"{entry.name} must be at least {least:g}, not {value}.")
    if most is not None and value > most:
        raise UserError(f"{entry.name} must be at most {most:g}, not {value}.")
    if is_text(entry) and not (isinstance(value, str) and len(value) <= LONGEST_TEXT and value.isprintable()):
        raise UserError(f"{entry.name} must be one line of at most {LONGEST_TEXT} characters: shorten it.")


def is_text(entry: dataclasses.Field) -> bool:
    """Whether a setting is free text."""
    return entry.type is str and not entry.metadata["choices"]
