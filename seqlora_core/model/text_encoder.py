"""The text encoder as training and sampling use it: prompts in, embeddings out, with words whose vectors are given."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data.prompts import split_at_weights
from ..data.words import NO_WORDS, Words, split_at_words
from ..errors import UserError
from ..hashing import fingerprint

BATCH = 16  # prompts per pass without a gradient


@dataclass(frozen=True)
class Vocabulary:
    """What the start and the steps of a learned word are measured by.

    Attributes:
        width: numbers per vector.
        spread: standard deviation of all numbers in the table of input embeddings.
        longest: the norm that 99 of 100 vectors in the table do not exceed.
    """

    width: int
    spread: float
    longest: float

    @classmethod
    def of(cls, table: Tensor) -> "Vocabulary":
        """Measure a table of input embeddings, [entries, width]."""
        table = table.detach().float()
        return cls(table.shape[1], table.std().item(), table.norm(dim=1).quantile(0.99).item())


class TextEncoder(Protocol):
    """A frozen text encoder.

    Implemented by `CLIPTextEncoder`, and by the host's adapter for a CLIP that is already loaded in a graph.
    """

    def encode(self, prompts: Sequence[str], words: Words) -> Tensor:
        """Encode prompts, with the graph to the words' vectors where these need gradients.

        Args:
            words: the vectors that stand for a token in the prompts (see `data.words.split_at_words`).

        Returns:
            [N, tokens, d] float32, on the encoder's device.
        """

    def count_tokens(self, prompt: str, words: Words) -> int:
        """Count a prompt's tokens, with those that begin and end it."""

    def loaded(self) -> AbstractContextManager:
        """While the block lasts, keep the encoder where it computes; hosts free its memory afterwards."""

    def vectors_of(self, text: str) -> Tensor:
        """Return the input embeddings of a text without its start and end tokens, [t, width] float32 on the CPU."""

    def vocabulary(self) -> Vocabulary:
        """Measure the encoder's table of input embeddings."""

    def fingerprint(self) -> str:
        """Return what tells the encoder apart from others: learned words belong to one."""


@dataclass(frozen=True)
class CLIPTextEncoder:
    """A `TextEncoder` over the tokenizer and the CLIP text encoder of a diffusers pipeline."""

    tokenizer: Any
    model: Any

    def encode(self, prompts: Sequence[str], words: Words = NO_WORDS) -> Tensor:
        return self._encode([[prompt] for prompt in prompts], words)

    @torch.no_grad()
    def encode_weighted(self, prompt: str, words: Words = NO_WORDS) -> Tensor:
        """Encode a prompt with weights like "(sksdog:1.2)", as ComfyUI does: [tokens, d] float32 on the CPU.

        A weight w moves the embeddings of its tokens from those of the empty prompt z0: `z0 + w (z - z0)`.
        """
        pieces = split_at_weights(prompt) or [("", 1.0)]
        embedding = self._encode([[text for text, _ in pieces]], words)[0]
        weights = [1.0]
        for text, weight in pieces:
            weights += [weight] * (self.count_tokens(text, words) - 2)
        weights = torch.tensor((weights + [1.0] * len(embedding))[: len(embedding)]).to(embedding).unsqueeze(1)
        if (weights == 1).all():
            return embedding.cpu()
        empty = self._encode([[""]], words)[0]
        return (empty + weights * (embedding - empty)).cpu()

    def _encode(self, prompts: Sequence[Sequence[str]], words: Words) -> Tensor:
        """Encode prompts that are given in pieces."""
        tokenized = [self._tokenize(pieces, words) for pieces in prompts]
        ids = torch.tensor([ids for ids, _ in tokenized], device=self.model.device)
        places = [(row, place, vectors) for row, (_, own) in enumerate(tokenized) for place, vectors in own]
        with self._replacing(places):
            return self.model(ids)[0].float()

    @torch.no_grad()
    def encode_all(self, prompts: Sequence[str], words: Words = NO_WORDS) -> Tensor:
        """Encode any number of prompts without a graph, in batches: [N, tokens, d] float32 on the CPU."""
        batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
        return torch.cat([self.encode(batch, words).cpu() for batch in batches or [[""]]])[: len(prompts)]

    def count_tokens(self, prompt: str, words: Words = NO_WORDS) -> int:
        return 2 + sum(len(ids) if vectors is None else len(vectors) for ids, vectors in self._pieces(prompt, words))

    def loaded(self) -> AbstractContextManager:
        return nullcontext()

    def vectors_of(self, text: str) -> Tensor:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return self._table()[ids].detach().float().cpu()

    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self._table())

    def fingerprint(self) -> str:
        """See `TextEncoder`; hosts name the same weights differently, so only what all have counts."""
        return text_fingerprint(self.model.state_dict())

    def _table(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def _pieces(self, prompt: str, words: Words) -> Iterator[tuple[list[int], Tensor | None]]:
        """Token ids, and the vectors of words, in the order of the prompt."""
        for text, word in split_at_words(prompt, words):
            if word is not None:
                yield [], words[word]
            else:
                yield self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids, None

    def _tokenize(self, prompt: Sequence[str], words: Words) -> tuple[list[int], list[tuple[int, Tensor]]]:
        """The ids of a prompt, padded, with the places of the words' vectors; what is too long is cut, as elsewhere."""
        tokenizer = self.tokenizer
        length, ids, places = tokenizer.model_max_length, [tokenizer.bos_token_id], []
        for own, vectors in (piece for text in prompt for piece in self._pieces(text, words)):
            if vectors is not None:
                own = [0] * len(vectors)  # any id, since its embedding is replaced
                if room := vectors[: max(length - 1 - len(ids), 0)].shape[0]:
                    places.append((len(ids), vectors[:room]))
            ids = (ids + own)[: length - 1]
        ids.append(tokenizer.eos_token_id)
        return ids + [tokenizer.pad_token_id] * (length - len(ids)), places

    @contextmanager
    def _replacing(self, places: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
        """While the block lasts, put vectors in the place of input embeddings; (row, first place, vectors [k, w])."""

        if not places:
            yield
            return
        width = self._table().shape[1]
        for _, _, vectors in places:
            if vectors.shape[1] != width:
                raise UserError(
                    f"A learned word has vectors of {vectors.shape[1]} numbers, but this text encoder takes {width}: "
                    "use the base model that the word was learned on."
                )

        def replace(module: object, inputs: object, embeddings: Tensor) -> Tensor:
            embeddings = embeddings.clone()
            for row, place, vectors in places:
                embeddings[row, place : place + len(vectors)] = vectors.to(embeddings)
            return embeddings

        hook = self.model.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()


def text_fingerprint(weights: dict[str, Tensor]) -> str:
    """Hash a sample of a CLIP text encoder's input embeddings and attention weights, by names that all programs share.

    Args:
        weights: by any names that end as Hugging Face's do ("...layers.0.self_attn.q_proj.weight").
    """
    kept = {}
    for name, weight in weights.items():
        if name.endswith("token_embedding.weight"):
            kept["token_embedding"] = weight
        elif ".self_attn." in f".{name}" and name.endswith("proj.weight"):
            kept[name[name.index("layers.") :]] = weight
    return fingerprint(kept)
