"""Prompts, encoded by the host's CLIP: many in one pass, each once, and kept for the next node."""

import copy
from collections.abc import Callable, Iterable, Sequence

import comfy.model_management as model_management
import torch
from torch import Tensor

from ...seqlora_core.data.words import Words
from ...seqlora_core.errors import UserError
from ...seqlora_core.hashing import fingerprint
from ...seqlora_core.model.sd15 import SD15
from ..cache_keys import values_fingerprint
from . import CLIP
from .kept import KEPT, used_to_encode
from .model import as_loaded
from .words import teach

_PROMPTS_PER_PASS = 8  # Cancel waits for a pass, which takes seconds on a CPU
_INCOMPARABLE = ("object_patches", "weight_wrapper_patches", "hook_patches", "forced_hooks")  # of a patcher


def check_texts(clip: CLIP | None, prompt: str) -> None:
    """Raises UserError where the CLIP is missing, or embeds a prompt in a width that the UNet does not take."""
    if clip is None:
        raise UserError("No CLIP is on the input clip (some files have none): connect the one of an SD1.5 checkpoint.")
    width = TextEncoder(clip).encode([prompt]).shape[-1]
    if width != SD15.text_width:
        raise UserError(
            f"The CLIP on the input clip makes texts of width {width}, but {SD15.name} takes {SD15.text_width}: "
            "connect an SD1.5 CLIP."
        )


def count_tokens(clip: CLIP, prompt: str) -> int:
    """Count a prompt's tokens, the start and end tokens included."""
    windows = next(iter(clip.tokenize(prompt).values()))
    return 2 + sum(_place_of_end(window) - 2 for window in windows)


def _place_of_end(window: list[tuple]) -> int:
    """The place of a window's first end token, counted from 1; more of them pad the window."""
    tokens = [entry[0] for entry in window]  # numbers, or vectors of a textual inversion
    return next(place for place, token in enumerate(tokens, 1) if isinstance(token, int) and token == tokens[-1])


class TextEncoder:
    """The embeddings that a CLIP makes of prompts, cut after the first window of 77 tokens as on the command line.

    Embeddings are found again by a hash of CLIP's weights, patches and layer and of the prompt's tokens.  So no CLIP
    stays in memory for them, and every change of a CLIP leads to others.  A CLIP that another node has changed in a way
    that cannot be hashed encodes its prompts one by one, as that node may expect, and they are not kept.
    """

    def __init__(self, clip: CLIP) -> None:
        self._clip, self._identity = clip, _identify(clip)

    def knowing(self, words: Words) -> "TextEncoder":
        """This encoder, to which prompts can name these words as well."""
        encoder = copy.copy(self)
        encoder._clip = copy.copy(self._clip)
        teach(encoder._clip, words)
        return encoder

    def count_tokens(self, prompt: str) -> int:
        """See `count_tokens`."""
        return count_tokens(self._clip, prompt)

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """The prompts that are yet to be encoded, without repeats."""
        return list({key: prompt for prompt, (key, _) in self._inputs(prompts).items() if key not in KEPT}.values())

    def encode(self, prompts: Sequence[str], reached: Callable[[int], None] = lambda done: None) -> Tensor:
        """Encode prompts as [P, 77, 768] float32 on the CPU.

        Args:
            reached: called before each pass with the number of missing prompts that are encoded.
        """
        inputs = self._inputs(prompts)
        found = {key: KEPT.get(key) for key, _ in inputs.values()}
        missing = {key: tokens for key, tokens in inputs.values() if found[key] is None}
        keys, size = list(missing), _PROMPTS_PER_PASS if self._identity else 1
        for start in range(0, len(keys), size):
            reached(start)
            batch = keys[start : start + size]
            for key, embedding in zip(batch, self._encode([missing[key] for key in batch]), strict=True):
                found[key] = KEPT.put(key, embedding) if self._identity else embedding
        return torch.stack([found[inputs[prompt][0]] for prompt in prompts])

    def _inputs(self, prompts: Iterable[str]) -> dict[str, tuple[str, dict]]:
        """Per prompt, a key and the tokens to encode.

        The tokens hold their weights, and the vectors of textual inversions.
        """
        inputs = {}
        for prompt in dict.fromkeys(prompts):
            tokens = self._clip.tokenize(prompt)
            if self._identity:
                tokens = {name: windows[:1] for name, windows in tokens.items()}
            inputs[prompt] = (values_fingerprint([self._identity, *(list(pair) for pair in tokens.items())]), tokens)
        return inputs

    def _encode(self, prompts: list[dict]) -> Tensor:
        """Encode prompts of one window each in one pass, or one prompt of any length, as [P, 77, 768].

        To the host, the windows of several prompts are the windows of one long prompt.
        """
        tokens = prompts[0]
        if len(prompts) > 1:
            tokens = {name: [window for prompt in prompts for window in prompt[name]] for name in tokens}
        model_management.throw_exception_if_processing_interrupted()
        with torch.inference_mode():
            windows = self._clip.encode_from_tokens(tokens)[0]
        with torch.inference_mode(False):
            windows = windows.to("cpu", torch.float32, copy=True)
        return windows.reshape(len(prompts), -1, windows.shape[-1])[:, : SD15.prompt_tokens]


def _identify(clip: CLIP) -> str:
    """A hash of everything in a CLIP that decides its embeddings; empty if that cannot be hashed."""
    plain = getattr(clip.encode_from_tokens, "__func__", None) is CLIP.encode_from_tokens
    if not plain or any(getattr(clip.patcher, name, None) for name in _INCOMPARABLE):
        return ""
    patches = [(key, *clip.patcher.patches[key]) for key in sorted(clip.patcher.patches, key=str)]
    with torch.inference_mode():
        weights = fingerprint(used_to_encode(as_loaded(clip.patcher)), torch.float32)
    return values_fingerprint([weights, clip.layer_idx, patches])
