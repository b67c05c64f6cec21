"""The graph's CLIP as the core's `TextEncoder`: learned words are trained through it."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import comfy.model_management as model_management
import torch
from torch import Tensor, nn

from ...seqlora_core.data.words import Words
from ...seqlora_core.errors import UserError
from ...seqlora_core.model.sd15 import SD15
from ...seqlora_core.model.text_encoder import Vocabulary, text_fingerprint
from . import CLIP, ModelPatcher
from .model import as_loaded, autograd_view, lent_weights, without_fast_products
from .texts import count_tokens
from .words import teach


class HostTextEncoder:
    """The graph's CLIP with its patches and its layer (CLIP skip), through which gradients pass to words' vectors.

    The CLIP stays as it was: its weights get no gradient, and words are taught to a copy that shares them.

    Args:
        model: the MODEL that is trained on, which stays loaded next to the CLIP.
    """

    def __init__(self, clip: CLIP, model: ModelPatcher) -> None:
        self._clip, self._model = clip, model
        self._depth = 0  # of nested `loaded` blocks

    def encode(self, prompts: Sequence[str], words: Words) -> Tensor:
        """See `TextEncoder`; prompts have weights and embeddings as in CLIP Text Encode, and are cut after a window."""
        clip = copy.copy(self._clip)
        teach(clip, words)
        tokenized = [clip.tokenize(prompt) for prompt in prompts]
        tokens = {name: [one[name][0] for one in tokenized] for name in tokenized[0]}
        patcher = clip.patcher
        clip.load_model = lambda *args, **kwargs: patcher  # it is loaded; the host might push the UNet out
        with self.loaded():
            # To the host, the windows of several prompts are the windows of one long prompt.
            embeddings = clip.encode_from_tokens(tokens)
        if _needs_gradient(tokens) and torch.is_grad_enabled() and not embeddings.requires_grad:
            raise UserError(
                "Another node has changed the CLIP so that no word can be learned through it: connect the CLIP from "
                "before that node, or set token_vectors to 0."
            )
        return embeddings.float().reshape(len(prompts), -1, embeddings.shape[-1])[:, : SD15.prompt_tokens]

    def count_tokens(self, prompt: str, words: Words) -> int:
        """See `TextEncoder`."""
        clip = copy.copy(self._clip)
        teach(clip, words)
        return count_tokens(clip, prompt)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Keep the CLIP on its device next to the UNet, ready for a backward pass; afterwards free its memory."""
        if self._depth:
            yield
            return
        encoder = self._clip.cond_stage_model
        with torch.inference_mode():  # as for sampling; otherwise the host would find other tensors than it made
            # Named together, so that the host does not move the UNet away, and both at once.
            paged = any(getattr(own, "is_dynamic", lambda: False)() for own in (self._model, self._clip.patcher))
            model_management.load_models_gpu([self._model, self._clip.patcher], force_full_load=not paged)
        self._depth += 1
        try:
            with without_fast_products(), lent_weights(encoder), _copied_inputs_of_norms(encoder):
                yield
        finally:
            self._depth -= 1
            self._unload()

    def _unload(self) -> None:
        """Have the host move the CLIP away, and nothing else; a later use loads it again, as it was."""
        device = self._clip.patcher.load_device
        if model_management.is_device_cpu(device):
            return
        others = [own for own in model_management.current_loaded_models if not self._is_ours(own.model)]
        with torch.inference_mode():
            model_management.free_memory(1e30, device, keep_loaded=others)
        model_management.soft_empty_cache()

    def _is_ours(self, patcher: ModelPatcher | None) -> bool:
        return patcher is not None and self._clip.patcher.is_clone(patcher)

    @torch.inference_mode(False)
    def vectors_of(self, text: str) -> Tensor:
        """See `TextEncoder`."""
        (windows,) = self._clip.tokenize(text).values()
        end = windows[0][-1][0]
        tokens = [token for token, *_ in windows[0][1:]]
        table = self._table()
        rows = [token if isinstance(token, Tensor) else table[token] for token in _before(tokens, end)]
        return torch.stack(rows).detach().float().cpu() if rows else torch.zeros(0, table.shape[1])

    @torch.inference_mode(False)
    def vocabulary(self) -> Vocabulary:
        """See `TextEncoder`."""
        return Vocabulary.of(self._table())

    def fingerprint(self) -> str:
        """See `TextEncoder`."""
        return clip_fingerprint(self._clip)

    def _table(self) -> Tensor:
        """The input embeddings [entries, 768], without patches."""
        weights = as_loaded(self._clip.patcher)
        return autograd_view(next(weights[name] for name in weights if name.endswith("token_embedding.weight")))


@torch.inference_mode()
def clip_fingerprint(clip: CLIP) -> str:
    """What tells a CLIP apart from others: a hash of its weights without patches, the command line's for these."""
    return text_fingerprint(as_loaded(clip.patcher))


def _before(tokens: Sequence[int | Tensor], end: int) -> list[int | Tensor]:
    """The tokens before the first end token."""
    place = next(place for place, token in enumerate(tokens) if not isinstance(token, Tensor) and token == end)
    return list(tokens[:place])


def _needs_gradient(tokens: dict[str, list[list[tuple]]]) -> bool:
    every = (entry[0] for windows in tokens.values() for window in windows for entry in window)
    return any(isinstance(token, Tensor) and token.requires_grad for token in every)


@contextmanager
def _copied_inputs_of_norms(module: nn.Module) -> Iterator[None]:
    """Have layer norms save a copy of their input: the host's CLIP goes on to change the input in place."""

    def copied(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return inputs[0].clone(), *inputs[1:]

    with ExitStack() as hooks:
        for part in module.modules():
            if isinstance(part, nn.LayerNorm):
                hooks.callback(part.register_forward_pre_hook(copied).remove)
        yield
