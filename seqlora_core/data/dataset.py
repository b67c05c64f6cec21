"""The encoded training data of one concept, as the command line and the nodes pass it to the trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UserError
from ..hashing import tensors_fingerprint
from ..model.sd15 import SD15


@dataclass(frozen=True)
class Example:
    """One image as latents, with the prompts that describe it; h and w are in latent px.

    Attributes:
        mean: [4, h, w] mean of the VAE's posterior, multiplied by the VAE's scaling factor.
        prompts: [P, tokens, d] text embeddings; each step uses one at random.
        std: [4, h, w] standard deviation of the posterior, scaled likewise; None if steps should use the mean itself.
        mask: [1, h, w] in 0..1, the weight of each latent px in the loss; None weights all of them with 1.
        texts: the P prompts themselves, for training runs that look for a word in them; may be empty.
        own_rows: [P, tokens], 1 for the rows of `prompts` on which the concept acts and 0 for others; None is all.
    """

    mean: Tensor
    prompts: Tensor
    std: Tensor | None = None
    mask: Tensor | None = None
    texts: tuple[str, ...] = ()
    own_rows: Tensor | None = None


@dataclass(frozen=True)
class EncodedConcept:
    """The reference images of a concept, and optionally images of its class for prior preservation.

    Attributes:
        examples: the reference images.
        prior: the images of the class.
        window: side, in latent px, of the square that each step cuts at random from an example; None uses the whole
            example (cut to the smallest sides in the batch, if the sizes differ).
        protected: [K, tokens, d] text embeddings of the protected prompts (see `training.protected_prompts`), of which
            no images are needed; None if there are none.
        held_out: images of the concept that are not trained on (see `training.held_out`).
        empty: [tokens, d] text embedding of the empty prompt, for captions that are dropped; None drops none.
        preview: what previews show instead of the first prompt of the first example: its size counts, and its prompt.
        source: a fingerprint of the images and captions before encoding.  The encoding itself may differ between runs
            (a host's VAE samples) and between machines (rounding).  If empty, the tensors are hashed instead.

    Raises:
        UserError: there is no example, or a tensor has the wrong shape or a value that is not finite.
    """

    examples: Sequence[Example]
    prior: Sequence[Example] = ()
    window: int | None = None
    protected: Tensor | None = None
    source: str = ""
    held_out: Sequence[Example] = ()
    empty: Tensor | None = None
    preview: Example | None = None

    def __post_init__(self) -> None:
        if not self.examples:
            raise UserError("There is no training image: give at least one.")
        for example in (*self.examples, *self.prior, *self.held_out):
            _check(example)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width, in latent px, of the part of the first example that a step uses."""
        height, width = (min(side, self.window or side) for side in self.examples[0].mean.shape[1:])
        return height, width

    def with_prompts(self, encode: Callable[[Sequence[str]], Tensor]) -> "EncodedConcept":
        """Encode the prompts of all examples but those of the class again, each text once.

        Args:
            encode: (N texts) -> [N, tokens, d] on the CPU.
        """
        preview = [] if self.preview is None else [self.preview]
        own = [*self.examples, *self.held_out, *preview]
        texts = list(dict.fromkeys(text for example in own for text in example.texts))
        encoded = dict(zip(texts, encode(texts), strict=True))

        def again(examples: Sequence[Example]) -> list[Example]:
            return [
                replace(example, prompts=torch.stack([encoded[text] for text in example.texts])) for example in examples
            ]

        return replace(
            self,
            examples=again(self.examples),
            held_out=again(self.held_out),
            preview=next(iter(again(preview)), None),
            source=self.fingerprint(),
        )

    def with_own_rows(self, mark: Callable[[Sequence[str]], Tensor]) -> "EncodedConcept":
        """Mark the rows on which the concept acts, in all examples.

        Args:
            mark: (P texts) -> [P, tokens] of 0 and 1.
        """

        def marked(examples: Sequence[Example]) -> list[Example]:
            return [replace(example, own_rows=mark(example.texts)) for example in examples]

        return replace(
            self,
            examples=marked(self.examples),
            prior=marked(self.prior),
            held_out=marked(self.held_out),
            preview=None if self.preview is None else marked([self.preview])[0],
            source=self.fingerprint(),
        )

    def fingerprint(self) -> str:
        """Return the fingerprint by which training runs recognize the same data."""
        return self.source or self.encoded_fingerprint()

    def encoded_fingerprint(self) -> str:
        """Hash the encoded tensors."""
        tensors = (
            tensor
            for example in (*self.examples, *self.prior, *self.held_out)
            for tensor in (example.mean, example.std, example.prompts, example.mask)
            if tensor is not None
        )
        return tensors_fingerprint(tensors, f"{len(self.examples)}+{len(self.prior)}")


def _check(example: Example) -> None:
    if example.mean.ndim != 3 or example.mean.shape[0] != SD15.latent_channels:
        raise UserError(
            f"Latents must have the shape [{SD15.latent_channels}, height, width], not {list(example.mean.shape)}."
        )
    if example.prompts.ndim != 3 or not len(example.prompts):
        raise UserError(f"Prompts must have the shape [prompts, tokens, width], not {list(example.prompts.shape)}.")
    if example.texts and len(example.texts) != len(example.prompts):
        raise UserError(f"An example has {len(example.texts)} texts for {len(example.prompts)} prompts.")
    if not (torch.isfinite(example.mean).all() and torch.isfinite(example.prompts).all()):
        raise UserError("Latents and prompts must be finite numbers: the VAE or the text encoder returned NaN.")
    if example.std is not None and example.std.shape != example.mean.shape:
        raise UserError("The standard deviation of latents must have the shape of their mean.")
    if example.mask is not None:
        if example.mask.shape != (1, *example.mean.shape[1:]):
            raise UserError(
                f"A mask must have the shape [1, height, width] of its latents, not {list(example.mask.shape)}."
            )
        if not (example.mask > 0).any():
            raise UserError("A mask is empty, so nothing of its image would count: paint the subject into it.")
