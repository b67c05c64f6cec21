"""The vectors of a learned word as a stock textual-inversion file.

One tensor [k, w], named by the word: ComfyUI, AUTOMATIC1111's web UI, diffusers and kohya's scripts load that.  The
other layouts of these programs are read as well, as safetensors.
"""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..data.prompts import shorten
from ..data.words import Words
from ..errors import UserError
from ..tensor_file import TensorFile

MAX_VECTORS = 75  # room for words in a prompt of CLIP's
_MAX_WIDTH = 8192
BUNDLED = "bundle_emb."  # + NAME + `_A1111`: a word inside a LoRA file
_A1111 = ".string_to_param.*"
_NAMELESS = ("emb_params", "string_to_param.*", "*", "<*>")  # of kohya's scripts, and of converted files


def serialize(word: str, vectors: Tensor) -> bytes:
    """Return the content of a file with one word, float32."""
    return save({word: vectors.detach().float().cpu().clone(memory_format=torch.contiguous_format)}, {"format": "pt"})


def deserialize(content: bytes, source: str) -> tuple[str, Tensor]:
    """Return the word (empty where the file names none) and its vectors [k, w] float32.

    Raises:
        UserError: it is something else; the message names `source`.
    """
    return _only_word(TensorFile.of(content, source))


def read(path: Path) -> tuple[str, Tensor]:
    """As `deserialize`, from a file."""
    return _only_word(TensorFile.open(path))


def is_embedding(file: TensorFile) -> bool:
    """Whether a file holds one word and nothing else."""
    shapes = list(file.shapes.values())
    return len(shapes) == 1 and len(shapes[0]) in (1, 2) and "lora" not in next(iter(file.shapes)).lower()


def bundled_words(file: TensorFile) -> dict[str, Tensor]:
    """Return the words inside a LoRA file, by name."""
    keys = {key: key.removeprefix(BUNDLED).removesuffix(_A1111) for key in file if is_bundled(key)}
    return {name: _checked(file[key], file.source, key) for key, name in keys.items()}


def is_bundled(key: str) -> bool:
    """Whether a key of a LoRA file is a word's."""
    return key.startswith(BUNDLED) and key.endswith(_A1111)


def bundle(words: Words) -> dict[str, Tensor]:
    """Return the tensors that carry words inside a LoRA file."""
    return {f"{BUNDLED}{word}{_A1111}": vectors.detach().float().cpu().clone() for word, vectors in words.items()}


def _only_word(file: TensorFile) -> tuple[str, Tensor]:
    if not is_embedding(file):
        raise UserError(f"{file.source} is not a textual inversion with one word: choose another file.")
    key = next(iter(file))
    return "" if key in _NAMELESS else key, _checked(file[key], file.source, key)


def _checked(tensor: Tensor, source: str, key: str) -> Tensor:
    vectors = torch.atleast_2d(tensor)
    fits = vectors.ndim == 2 and 1 <= len(vectors) <= MAX_VECTORS and 1 <= vectors.shape[1] <= _MAX_WIDTH
    if not (fits and vectors.is_floating_point()):
        raise UserError(f"{source} holds no vectors of a word in {shorten(key)} but a tensor {list(tensor.shape)}.")
    return vectors.float()
