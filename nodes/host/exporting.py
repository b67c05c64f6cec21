"""Writing a concept of a bank to where the host's own nodes find it."""

from pathlib import Path

from ...seqlora_core.bank import Bank
from ...seqlora_core.composition.lora_files import check_free, save_words
from . import folders


def export_concept(bank: Bank, concept_name: str, file_name: str = "") -> tuple[Path, list[str]]:
    """Write a concept's LoRA file to models/loras, and its learned word to models/embeddings.

    Args:
        file_name: without its extension; if empty, the concept's name.

    Returns:
        The LoRA file, and a sentence per written file.

    Raises:
        UserError: there is no such concept, or a file exists or cannot be written.
    """
    concept = bank.concept(concept_name)
    words, folder = bank.words([concept]), folders.embedding_folder()
    check_free(words, folder)
    path = bank.export(concept_name, folders.lora_path(file_name or concept.name))
    lines = [f"Wrote {path}"]
    for word, written in zip(words, save_words(words, folder), strict=True):
        lines += [f"Wrote {written}", f"With stock nodes, write embedding:{written.stem} in prompts for {word!r}."]
    return path, lines
