"""CLIP's tokenizer with a vocabulary of the mini world's words; any other word is spelt out letter by letter."""

import json
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from seqlora_core.data.prompts import TEMPLATES

from .catalogue import things
from .pictures import COLOURS, FRAMES, PATTERNS, RELATIONS

LENGTH = 32
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes CLIP's two files into `folder`, if they are not there, and reads them with transformers.

    Once made they stay: pairs that are equally frequent merge in an order that differs from call to call, and with it
    the ids that a text encoder has learned.
    """
    if not (folder / "vocab.json").exists():
        _write(folder)
    return CLIPTokenizer.from_pretrained(str(folder))


def _write(folder: Path) -> None:
    words = [
        word for thing in things() for word in (*thing.name.split(), *thing.kind.split(), *thing.class_word.split())
    ]
    words += [*COLOURS, *PATTERNS, *" ".join(RELATIONS).split()]
    words += ["and", "on", "an", "background", *re.findall(r"\w+", " ".join([*TEMPLATES, *FRAMES]))]
    merges = _merges(sorted(set(words)))
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = [*alphabet, *(f"{char}</w>" for char in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = [*dict.fromkeys(vocabulary), SPECIAL["bos_token"], SPECIAL["eos_token"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "pad_token": "<|endoftext|>", **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> np.ndarray:
    """[texts, LENGTH] token ids."""
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np").input_ids


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges under which each word of the list becomes one token."""
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = Sequence([Whitespace()])
    trainer = BpeTrainer(vocab_size=20_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    model.train_from_iterator(words, trainer)
    return [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
