"""Files that the page sends to be imported into a bank: received in pieces into a folder that is deleted afterwards."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import folder_paths
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ...seqlora_core.bank import Bank
from ...seqlora_core.bank.embedding_file import is_embedding
from ...seqlora_core.bank.foreign_lora import open_file
from ...seqlora_core.bank.importing import describe_import, import_lora
from ...seqlora_core.bank.names import check_file_name
from ...seqlora_core.bank.spec import ConceptSpec
from ...seqlora_core.errors import UserError

MAX_BYTES = 2**30  # of one upload: a LoRA of SD1.5 has up to some hundred MB
MAX_FILES = 2  # a LoRA and its learned word
_CHUNK = 2**18  # bytes
# What aiohttp raises on a body that is no multipart, or ends early.
_BROKEN = (HttpProcessingError, ValueError, AssertionError, RuntimeError, LookupError, EOFError, ConnectionError)


class TooLarge(Exception):
    """An upload has more bytes than `MAX_BYTES`."""


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A new folder below the host's temporary folder."""
    parent = Path(folder_paths.get_temp_directory())
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="seqlora-", dir=parent, ignore_cleanup_errors=True)


async def receive(request: web.BaseRequest, folder: Path) -> list[Path]:
    """Write the files of a multipart request into a folder, under the names that they have.

    Raises:
        UserError: there is none, there are too many, or a name cannot be used.
        TooLarge: they have more bytes than `MAX_BYTES`.
    """
    if (request.content_length or 0) > MAX_BYTES:
        raise TooLarge
    try:
        return await _write_parts(request, folder)
    except _BROKEN as error:
        raise UserError("The upload was cut off or cannot be read: drop the file again.") from error
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: free some space there, or let ComfyUI write there.") from error


async def _write_parts(request: web.BaseRequest, folder: Path) -> list[Path]:
    files, received = [], 0
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        name = getattr(part, "filename", None)
        if len(files) == MAX_FILES:
            raise UserError("Drop one LoRA at a time, alone or with the file of its learned word.")
        path = folder / check_file_name(name or "", "file's name")
        if path.suffix.lower() != ".safetensors":
            raise UserError(f"{path.name} is not a .safetensors file, and nothing else is read: convert it first.")
        if path.exists():
            raise UserError(f"Two files are called {path.name}: rename one of them.")
        with path.open("wb") as file:
            while chunk := await part.read_chunk(_CHUNK):
                received += len(chunk)
                if received > MAX_BYTES:
                    raise TooLarge
                file.write(chunk)
        files.append(path)
    if not files:
        raise UserError("The upload has no file: drop a .safetensors file.")
    return files


def import_files(bank: Bank, files: list[Path], spec: ConceptSpec, project: bool) -> str:
    """Add received files to a bank as a concept; the text that the node Import LoRA as Concept shows.

    Raises:
        UserError: see `import_lora`; or both files are LoRAs, or both are words.
    """
    words = [path for path in files if is_embedding(open_file(path))]
    others = [path for path in files if path not in words]
    if len(words) > 1 or len(others) > 1:
        raise UserError("Drop one LoRA at a time, alone or with the file of its learned word.")
    path, embedding = (others[0], next(iter(words), None)) if others else (words[0], None)
    return describe_import(bank, import_lora(bank, path, spec, project, embedding=embedding))


def spec_of(query: Mapping[str, str]) -> ConceptSpec:
    """What the concept shall be called.

    Raises:
        UserError: a name is missing or cannot be used.
    """
    return ConceptSpec(query.get("name", ""), query.get("token", ""), query.get("class_word", ""))
