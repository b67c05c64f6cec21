"""The host's folders of banks, LoRA files and images, and cache keys for their contents."""

import os
import secrets
from pathlib import Path, PureWindowsPath

import folder_paths

from ...seqlora_core.bank import Bank
from ...seqlora_core.bank.names import check_file_name
from ...seqlora_core.data.reference_folder import image_files
from ...seqlora_core.errors import UserError
from ..cache_keys import files_cache_key

FOLDER = "seqlora"


def register_model_folder() -> None:
    """Register `models/seqlora`; paths that the user has configured for it stay, and come first."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def bank_names() -> list[str]:
    """The banks in all `seqlora` model folders."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    return sorted({child.name for root in roots if root.is_dir() for child in root.iterdir() if Bank.exists(child)})


def bank_folder(name: str) -> Path:
    """The folder of a bank of that name, existing or not.

    Raises:
        UserError: the name is empty, a path, or impossible on Windows.
    """
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    name = check_file_name(name, "bank's name")
    return next((root / name for root in roots if Bank.exists(root / name)), roots[0] / name)


def bank_cache_key(name: str | None) -> str:
    """A text that differs after every change of a bank, for the host's cache.

    A name that comes from another node is None here, since the host asks before that node runs: then the text differs
    every time.  It does so too where there is no bank: otherwise a node would not create a deleted bank again.
    """
    try:
        folder = None if name is None else bank_folder(name)
        if folder is None or not Bank.exists(folder):
            return secrets.token_hex()
        bank = Bank.open(folder)
    except UserError:  # reported when the node runs
        return secrets.token_hex()
    files = [bank.folder / concept.file for concept in bank.concepts]
    return f"{bank.manifest.id}/{bank.manifest.generation}/{files_cache_key(file for file in files if file.is_file())}"


def image_folders() -> list[str]:
    """The folders at any depth of the host's input folder that hold images, as relative paths with forward slashes."""
    root, found, seen = Path(folder_paths.get_input_directory()), [], set()
    for top, below, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link back to a folder above
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        if Path(top) != root and _holds_images(Path(top)):
            found.append(Path(top).relative_to(root).as_posix())
    return sorted(found)


def _holds_images(folder: Path) -> bool:
    try:
        return bool(image_files(folder))
    except UserError:
        return False


def image_folder(name: str) -> Path:
    """A folder in the host's input folder, by its relative path.

    Raises:
        UserError: there is no such folder.
    """
    path = PureWindowsPath(name or "")  # understands both kinds of slashes, and drives
    folder = Path(folder_paths.get_input_directory()).joinpath(*path.parts)
    if path.anchor or ".." in path.parts or not path.parts or not folder.is_dir():
        raise UserError(f"ComfyUI's input folder has no folder {name!r}: refresh the list (R), and choose one.")
    return folder


def folder_cache_key(name: str | None) -> str:
    """As `bank_cache_key`, for a folder of `image_folders`."""
    try:
        folder = image_folder(name)
    except UserError:  # reported when the node runs
        return secrets.token_hex()
    return files_cache_key(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.exists())


def lora_path(name: str) -> Path:
    """The path for a LoRA of that name that stock loaders will list.

    Raises:
        UserError: the name is empty, a path, or impossible on Windows.
    """
    stem = check_file_name(name, "file's name")
    return Path(folder_paths.get_folder_paths("loras")[0]) / f"{stem}.safetensors"


def embedding_folder() -> Path:
    """The folder in which prompts look for `embedding:NAME`."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def written_lora_cache_key(name: str | None) -> str:
    """As `bank_cache_key`, for the file at `lora_path`."""
    path = None if name is None else lora_path(name)
    return files_cache_key([path]) if path and path.is_file() else secrets.token_hex()


def lora_files() -> list[str]:
    """The LoRA files that stock loaders list, except pickles."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(".safetensors")]


def lora_file(name: str) -> Path:
    """The file behind a name of `lora_files`.

    Raises:
        UserError: there is no such file.
    """
    if name in lora_files() and (path := folder_paths.get_full_path("loras", name)) is not None:
        return Path(path)
    if not lora_files():
        raise UserError("models/loras has no .safetensors file: put a LoRA there, refresh the list (R), and choose it.")
    raise UserError(f"models/loras has no LoRA file {name!r}: refresh the list (R), and choose one.")


def lora_cache_key(name: str | None) -> str:
    """As `bank_cache_key`, for a file of `lora_files`."""
    return files_cache_key([lora_file(name)]) if name in lora_files() else secrets.token_hex()
