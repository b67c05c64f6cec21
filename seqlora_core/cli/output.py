"""What commands write: PNG images and JSON documents."""

import json
import sys
from pathlib import Path

from PIL import Image

from ..errors import UserError
from ..files import check_writable


def check_png(path: str) -> Path:
    """Check, before the work starts, that an image can be written there later.

    Raises:
        UserError: it is not a .png file, or cannot be written.
    """
    out = Path(path)
    if out.suffix.lower() != ".png":
        raise UserError(f"The output must be a .png file, not {out.name!r}.")
    check_writable(out)
    return out


def save_image(image: Image.Image, out: Path) -> None:
    """Write an image and the folder it goes to.

    Raises:
        UserError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        image.save(out)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error


def print_json(document: dict) -> None:
    """Print one JSON document on stdout, in ASCII, which every terminal and file can hold."""
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")
