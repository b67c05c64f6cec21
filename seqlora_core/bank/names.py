"""Names that users give, and the file names made from them."""

import re
import unicodedata
from collections.abc import Collection, Container, Iterable

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

# Letters of other scripts that look like Latin ones, in lower case or (after the space) in upper case alone.
_LOOKALIKES = str.maketrans("аеорсухіјѕһԁԛԝ вкмнт" + "οανρικχγυ βεζητμ", "aeopcyxijshdqw bkmht" + "oavpikxyu bezhtm")
_LOOKALIKES |= {ord("ı"): "i", ord(" "): " "}
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u180b-\u180f\u2800\ufe00-\ufe0f]")  # although they count as printable
_LATIN = re.compile("[a-z]")


def fold(text: str) -> str:
    """Equal for texts that a reader takes for the same: case, Unicode form, width, spaces, and letters that look alike.

    The look-alikes are those of the Cyrillic and Greek alphabets, a small part of Unicode's (UTS 39).
    """
    for _ in range(2):  # what one step changes may be another's to change again
        text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text).translate(_LOOKALIKES)).casefold()
    return " ".join(text.split())


# Words that prompts need for themselves: those of our templates, and subjects that people train or draw.
_ORDINARY_WORDS = """
    a an and art as at by for in is it near of on one or photo picture image rendering drawing painting close-up good
    the this that to with without man woman boy girl person people child baby face dog cat bird horse animal pet bear
    tree house plant toy food boat street mountain book chair clock bridge shoe cloud car bag backpack cup bottle hat
    red green blue black white big small old new style sun sea sky
"""
_MIN_WORD = 4  # letters; the short entries of a tokenizer, "sks" among them, are mostly not words


def check_new_words(
    token: str, class_word: str, other_tokens: Iterable[str] = (), vocabulary: Container[str] = ()
) -> list[str]:
    """Check the token of a new concept; returns sentences about what will work less well than another token.

    A token that another concept has is reported, not refused: the versions of one concept share it.

    Args:
        other_tokens: those of the bank's other concepts, without the concept that is about to be replaced.
        vocabulary: the entries of the base's tokenizer (CLIP's end whole words with "</w>"), where it is available.

    Raises:
        UserError: the token is the class word, or cannot be told from another token that is written differently.
    """
    folded, words = fold(token), fold(class_word).split()
    if folded == " ".join(words):
        raise UserError(
            f"The token and the class word are both {class_word!r}: give a token that is not a word yet, such as "
            f"{_invented(class_word)!r}."
        )
    notes = []
    for other in dict.fromkeys(other_tokens):
        if other == token:
            notes.append(
                f"Another concept of the bank has the token {token!r} too: prompts cannot tell the two apart when both "
                "are composed."
            )
        elif fold(other) == folded:
            raise UserError(
                f"The token {token!r} cannot be told from {other!r}, which the bank already has: choose another token."
            )
    is_known = token.isalpha() and len(token) >= _MIN_WORD and f"{folded}</w>" in vocabulary
    if is_known or folded in _ORDINARY_WORDS.split():
        notes.append(
            f"The token {token!r} is an ordinary word, whose meaning for the base the concept has to overcome: a word "
            f"that does not exist, such as {_invented(token)!r}, works better."
        )
    if set(words) & set(folded.split()):
        notes.append(f"The token {token!r} contains the class word, which then stands twice in prompts.")
    plain = unicodedata.normalize("NFKC", token).casefold()
    if _LATIN.search(plain) and plain.translate(_LOOKALIKES) != plain:
        notes.append(
            f"The token {token!r} mixes Latin letters with others that look like them, which nobody will type: use "
            "Latin letters only."
        )
    return notes


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
    return _invented(name)


def _invented(word: str) -> str:
    """A word that does not exist yet, made from one."""
    return f"sks{''.join(_words(word)) or 'dog'}"


def _words(name: str) -> list[str]:
    """The runs of a-z and 0-9, accents left off."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.findall(r"[a-z0-9]+", ascii_name)
