"""What commands write: PNG images and JSON documents."""

import io
import json
import sys
from pathlib import Path

from PIL import Image

from ..bank.folder import check_outside_banks
from ..errors import UserError
from ..files import check_no_input, check_writable, write_atomically


def check_output(path: str | Path, bank: str | None = None, *inputs: str | None) -> Path:
    """Check, before the work starts, that an output harms nothing.

    Args:
        bank: the folder of the command's bank.
        inputs: files and folders that the command reads.

    Raises:
        UserError: it lies in a bank, or is one of the inputs.
    """
    out = Path(path)
    check_outside_banks(out, [bank])
    check_no_input(out, inputs)
    return out


def check_png(path: str, bank: str | None = None, *inputs: str | None) -> Path:
    """Check, before the work starts, that an image can be written there later (see `check_output`).

    Raises:
        UserError: it is not a .png file, cannot be written, lies in a bank, or is one of the inputs.
    """
    out = check_output(path, bank, *inputs)
    if out.suffix.lower() != ".png":
        raise UserError(f"The output must be a .png file, not {out.name!r}.")
    check_writable(out)
    return out


def save_image(image: Image.Image, out: Path) -> None:
    """Write an image and the folder it goes to.

    Raises:
        UserError: it cannot be written.
    """
    content = io.BytesIO()
    image.save(content, "PNG")
    try:
        write_atomically(out, content.getvalue())
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error


def print_json(document: dict) -> None:
    """Print one JSON document on stdout, in ASCII, which every terminal and file can hold."""
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")
