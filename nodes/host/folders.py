"""The host's folders: of banks, LoRA files and pictures, and the state of what lies there."""

import secrets
from pathlib import Path

import folder_paths

from ...seqlora_core.bank import Bank
from ...seqlora_core.bank.names import check_file_name
from ...seqlora_core.errors import UserError
from ..graph import files_cache_key

FOLDER = "seqlora"


def register_model_folder() -> None:
    """Make `models/seqlora` known; paths that the user configured for it stay, and come first."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def bank_names() -> list[str]:
    """The banks in all `seqlora` model folders."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    return sorted({child.name for root in roots if root.is_dir() for child in root.iterdir() if Bank.exists(child)})


def bank_folder(name: str) -> Path:
    """Where a bank of that name lies, or will be made.

    Raises:
        UserError: the name is a path, empty, or no folder's on Windows.
    """
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    name = check_file_name(name, "bank's name")
    return next((root / name for root in roots if Bank.exists(root / name)), roots[0] / name)


def bank_cache_key(name: str | None) -> str:
    """A text that differs after every change of a bank, for the host's cache.

    A name that another node gives is None here, since the host asks before that node runs: then it differs every time.
    So it does for a bank that is not there, or what made one would be taken for done after the bank was deleted.
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
        UserError: there is none of that name.
    """
    if name not in image_folders():
        raise UserError(f"ComfyUI's input folder has no folder {name!r} any more: refresh the list and choose one.")
    return Path(folder_paths.get_input_directory()) / name


def folder_cache_key(name: str | None) -> str:
    """A text that differs after every change in a folder of `image_folders`; every time for another node's name."""
    if name is None:
        return secrets.token_hex()
    folder = image_folder(name)
    return files_cache_key(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.exists())


def lora_path(name: str) -> Path:
    """Where a LoRA of that name is written, so that stock loaders list it.

    Raises:
        UserError: the name is a path, empty, or no file's on Windows.
    """
    stem = check_file_name(name, "file's name")
    return Path(folder_paths.get_folder_paths("loras")[0]) / f"{stem}.safetensors"


def written_lora_cache_key(name: str | None) -> str:
    """As `bank_cache_key`, for what is written to `lora_path`."""
    path = None if name is None else lora_path(name)
    return files_cache_key([path]) if path and path.is_file() else secrets.token_hex()


def lora_files() -> list[str]:
    """What stock LoRA loaders list, without pickles."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(".safetensors")]


def lora_file(name: str) -> Path:
    """The file behind a name of `lora_files`.

    Raises:
        UserError: it is gone.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise UserError(f"There is no LoRA file {name} any more: refresh the list and choose one.")
    return Path(path)


def lora_cache_key(name: str | None) -> str:
    """A text that differs after every change of a file of `lora_files`; every time for a name of another node's."""
    return secrets.token_hex() if name is None else files_cache_key([lora_file(name)])
