"""One concept's training data, encoded: what the trainer takes, from the command line and from a graph alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..hashing import tensors_fingerprint
from ..model.sd15 import SD15


@dataclass(frozen=True)
class Example:
    """One image as latents, with the prompts that describe it.

    Attributes:
        mean: [4, h, w] mean of the VAE's posterior, already multiplied by its scaling factor.
        std: [4, h, w] its standard deviation, scaled likewise; None where the latents are not to be sampled anew.
        prompts: [P, tokens, d] text embeddings; each step takes one at random.
        mask: [1, h, w] in 0..1; the loss counts only where it is above 0.  None counts everywhere.
    """

    mean: Tensor
    prompts: Tensor
    std: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class EncodedConcept:
    """The reference images of a concept, and optionally images of its class for prior preservation.

    Attributes:
        window: side, in latent pixels, of the square that each step cuts at random from an example; None takes all of
            it (the smallest of the batch's sizes, where they differ).
        keep: [K, tokens, d] text embeddings of prompts whose pictures should stay as they are (see `crosstalk`, which
            needs no images of them); None where there are none.
        source: a hash of the images and captions before they were encoded, since the encoding itself may differ from
            run to run (a host's VAE samples) and from machine to machine (rounding); empty to go by the tensors.

    Raises:
        UserError: there is no example, or a tensor has the wrong shape or a value that is not finite.
    """

    examples: Sequence[Example]
    prior: Sequence[Example] = ()
    window: int | None = None
    keep: Tensor | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not self.examples:
            raise UserError("There is no training image: give at least one.")
        for example in (*self.examples, *self.prior):
            _check(example)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width, in latent pixels, of what a step sees of the first example."""
        height, width = (min(side, self.window or side) for side in self.examples[0].mean.shape[1:])
        return height, width

    def fingerprint(self) -> str:
        """A hash of the concept's own data, so that a training can tell whether it is the same as another's."""
        return self.source or self.encoded_fingerprint()

    def encoded_fingerprint(self) -> str:
        """Hash the encoded tensors."""
        tensors = (
            tensor
            for example in (*self.examples, *self.prior)
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
    if not (torch.isfinite(example.mean).all() and torch.isfinite(example.prompts).all()):
        raise UserError("Latents and prompts must be finite numbers: the VAE or the text encoder gave NaN.")
    if example.std is not None and example.std.shape != example.mean.shape:
        raise UserError("The standard deviation of latents must have the shape of their mean.")
    if example.mask is not None:
        if example.mask.shape != (1, *example.mean.shape[1:]):
            raise UserError(
                f"A mask must have the shape [1, height, width] of its latents, not {list(example.mask.shape)}."
            )
        if not (example.mask > 0).any():
            raise UserError("A mask is empty, so nothing of its image would count: paint the subject into it.")
