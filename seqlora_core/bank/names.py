"""Names that users give, and the file names made from them."""

import re
import unicodedata
from collections.abc import Collection

from ..errors import UserError

_RESERVED_ON_WINDOWS = {"con", "prn", "aux", "nul", "conin$", "conout$"}
_RESERVED_ON_WINDOWS |= {f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³"}
_MAX_NAME = 100
_MAX_SLUG = 60


def check_name(name: str, what: str = "concept's name") -> str:
    """A name without surrounding spaces, of a concept or whatever else has one in lists and messages.

    Raises:
        UserError: it is empty, too long, or holds a character with a meaning elsewhere (paths, `NAME:STRENGTH` lists).
    """
    name = name.strip()
    if not name:
        raise UserError(f"The {what} is empty: give one.")
    if len(name) > _MAX_NAME:
        raise UserError(f"The {what} is longer than {_MAX_NAME} characters: shorten it.")
    bad = sorted({char for char in name if char in '/\\:,<>"|?*' or not char.isprintable()})
    if bad or name in (".", ".."):
        shown = " ".join(map(repr, bad)) or repr(name)
        raise UserError(f"The {what} is not a path and cannot hold {shown}: use letters, digits, spaces, - and _.")
    return name


def check_file_name(name: str, what: str) -> str:
    """As `check_name`, of what is a file or folder under just this name (a concept's file has its `slug`).

    Raises:
        UserError: as there, or Windows would not make it, or would make another.
    """
    name = check_name(name, what)
    # A bank or an exported file may go to such a machine, and an ending does not free a reserved name.
    if name.partition(".")[0].rstrip().casefold() in _RESERVED_ON_WINDOWS:
        raise UserError(f"The {what} cannot be {name!r}, which Windows keeps for a device: choose another.")
    if name.endswith("."):
        raise UserError(f"The {what} cannot end with a dot, as {name!r} does, on Windows: leave it off.")
    return name


def check_word(value: str, what: str) -> str:
    """A token or class word without surrounding spaces.

    Raises:
        UserError: it is empty or does not print.
    """
    value = value.strip()
    if not value or not value.isprintable():
        raise UserError(f"The {what} is empty or does not print: give a word, such as {_EXAMPLES.get(what, 'dog')!r}.")
    return value


_EXAMPLES = {"token": "sksdog", "class word": "dog"}


def slug(name: str, taken: Collection[str] = ()) -> str:
    """A file name for `name` that every file system holds: a-z, 0-9 and hyphens, none of `taken`, none reserved."""
    base = "-".join(_words(name))[:_MAX_SLUG].strip("-") or "concept"
    if base in _RESERVED_ON_WINDOWS:
        base = f"{base}-concept"
    candidate, number = base, 2
    while candidate in taken:
        candidate, number = f"{base}-{number}", number + 1
    return candidate


def default_token(name: str) -> str:
    """A token that is hardly a word yet, made from the name: "My dog" -> "sksmydog".

    Raises:
        UserError: it is not a name, or has no Latin letter or digit, and all such names would have one token.
    """
    words = _words(check_name(name))
    if not words:
        raise UserError(f"No token can be made from the name {name!r}: give one in Latin letters, such as 'sksdog'.")
    return f"sks{''.join(words)}"


def _words(name: str) -> list[str]:
    """The runs of a-z and 0-9, accents left off."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.findall(r"[a-z0-9]+", ascii_name)
