"""The host's folders of banks, LoRA files and images, and cache keys for their contents."""

import secrets
from pathlib import Path

import folder_paths

from ...seqlora_core.bank import Bank
from ...seqlora_core.bank.names import check_file_name
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
    folder = None if name is None else bank_folder(name)
    if folder is None or not Bank.exists(folder):
        return secrets.token_hex()
    bank = Bank.open(folder)
    files = [bank.folder / concept.file for concept in bank.concepts]
    return f"{bank.manifest.id}/{bank.manifest.generation}/{files_cache_key(file for file in files if file.is_file())}"


def image_folders() -> list[str]:
    """The folders in the host's input folder."""
    root = Path(folder_paths.get_input_directory())
    return sorted(child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else []


def image_folder(name: str) -> Path:
    """A folder in the host's input folder.

    Raises:
        UserError: there is no such folder.
    """
    if name not in image_folders():
        raise UserError(f"ComfyUI's input folder has no folder {name!r} any more: refresh the list and choose one.")
    return Path(folder_paths.get_input_directory()) / name


def folder_cache_key(name: str | None) -> str:
    """As `bank_cache_key`, for a folder of `image_folders`."""
    return secrets.token_hex() if name is None else files_cache_key(image_folder(name).iterdir())


def lora_path(name: str) -> Path:
    """The path for a LoRA of that name that stock loaders will list.

    Raises:
        UserError: the name is empty, a path, or impossible on Windows.
    """
    stem = check_file_name(name, "file's name")
    return Path(folder_paths.get_folder_paths("loras")[0]) / f"{stem}.safetensors"


def written_lora_cache_key(name: str | None) -> str:
    """As `bank_cache_key`, for the file at `lora_path`."""
    path = None if name is None else lora_path(name)
    return files_cache_key([path]) if path and path.is_file() else secrets.token_hex()


def lora_files() -> list[str]:
    """The LoRA files that stock loaders list, except pickles."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]


def lora_file(name: str) -> Path:
    """The file behind a name of `lora_files`.

    Raises:
        UserError: there is no such file.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise UserError(f"There is no LoRA file {name} any more: refresh the list and choose one.")
    return Path(path)


def lora_cache_key(name: str | None) -> str:
    """As `bank_cache_key`, for a file of `lora_files`."""
    return secrets.token_hex() if name is None else files_cache_key([lora_file(name)])
