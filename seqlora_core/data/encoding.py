"""Encode images and captions once, before training, with the frozen VAE and text encoder of a base."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from PIL import Image
from PIL.ImageOps import mirror
from torch import Tensor

from ..errors import UserError
from ..hashing import data_fingerprint
from ..model.base import Base
from ..model.text_encoder import BATCH
from ..monitor import Monitor, Stage
from .buckets import fit_to_bucket
from .dataset import EncodedConcept, Example
from .formats import shown
from .hold_out import split_held_out
from .images import fit, to_tensor
from .listing import counted
from .prompts import describe_cut_prompts
from .reference_folder import Reference
from .words import NO_WORDS, Words


def encode_concept(
    base: Base,
    references: Sequence[Reference],
    resolution: int,
    prior: Sequence[Reference] = (),
    protected: Sequence[str] = (),
    *,
    crop: str = "center",
    buckets: bool = False,
    flip: bool = False,
    words: Words = NO_WORDS,
    hold_out: int = 0,
    seed: int = 0,
    empty: bool = False,
    monitor: Monitor | None = None,
) -> EncodedConcept:
    """Encode a concept's references into latents (mean and standard deviation) and text embeddings, on the CPU.

    A reference with repeats is encoded once and is that many examples, and a prompt that repeats is encoded once.

    Args:
        resolution: the shorter side that images are scaled to, in px; a multiple of the base's VAE scale factor.
        prior: images of the concept's class.
        protected: prompts whose images a training run must leave as they are (see `training.protected_prompts`).
        crop: "center" cuts the central square; "random" encodes the whole image, and each step of a training run cuts
            its own square out of the latents.
        buckets: whether images keep about their own ratio instead (see `buckets`).
        flip: whether mirrored images are encoded as further examples.
        words: the vectors of the bank's learned words, which prompts may name.
        hold_out: the number of references that are not trained on, chosen by the seed.
        seed: of the training run.
        empty: whether the empty prompt is encoded, for captions that are dropped.
        monitor: receives the progress, and is asked between passes whether to stop.

    Raises:
        Cancelled: the monitor asks to stop.
        UserError: too few images would be left, or nothing of an image with an alpha channel would count.
    """
    trained, held_out = split_held_out(references, hold_out, seed, (own.fingerprint for own in references))
    images = [*trained, *prior, *held_out]
    frame = _frame(base, resolution, crop, buckets)
    _check_alphas(images, frame)
    every = [*(prompt for image in images for prompt in image.prompts), *protected, *([""] if empty else [])]
    prompts = list(dict.fromkeys(every))
    text = f"encoding {counted(len(images), 'image')} and {counted(len(prompts), 'prompt')}"
    stage = Stage(monitor or Monitor(), text, len(images) + len(prompts))
    embeddings = _embeddings(base, prompts, words, stage.reached)
    numbers = count(len(prompts))

    def examples(group: Sequence[Reference]) -> list[Example]:
        made = []
        for reference in group:
            stage.reached(next(numbers))
            own = torch.stack([embeddings[prompt] for prompt in reference.prompts])  # [P, tokens, d]
            made += _examples(base, reference, own, frame, flip)
        return made

    window = None if crop == "center" else resolution // base.vae_scale_factor
    kept = torch.stack([embeddings[prompt] for prompt in protected]) if protected else None
    return EncodedConcept(
        examples(trained),
        examples(prior),
        window,
        kept,
        source_fingerprint(base, references, prior),
        [example for image in held_out for example in examples([image])[:1]],  # no mirrored or repeated ones
        embeddings[""] if empty else None,
    )


def check_alphas(base: Base, references: Sequence[Reference], resolution: int, crop: str, buckets: bool) -> None:
    """Raises UserError where nothing of an image would count, as `encode_concept` does."""
    _check_alphas(references, _frame(base, resolution, crop, buckets))


def _frame(base: Base, resolution: int, crop: str, buckets: bool) -> "Frame":
    return Frame(resolution, base.vae_scale_factor, crop == "center", base.size_multiple if buckets else 0)


def source_fingerprint(base: Base, references: Sequence[Reference], prior: Sequence[Reference] = ()) -> str:
    """The fingerprint by which training runs on these images recognize the same data, without encoding them."""
    groups = [
        [(r.image, r.prompts, r.repeats, *([] if r.alpha is None else [r.alpha])) for r in group]
        for group in (references, prior)
    ]
    return data_fingerprint(base.encoding_fingerprint(), *groups)


def cut_prompts(base: Base, references: Sequence[Reference]) -> list[str]:
    """Report the prompts that are too long for the base's text encoder, as sentences."""
    prompts = [prompt for reference in references for prompt in reference.prompts]
    return describe_cut_prompts(prompts, base.text_encoder.count_tokens, base.pipeline.tokenizer.model_max_length)


def _embeddings(base: Base, prompts: Sequence[str], words: Words, reached: Callable[[int], None]) -> dict[str, Tensor]:
    """The embedding [tokens, d] of every prompt; `reached` is called before each pass with the number that is done."""
    embeddings: dict[str, Tensor] = {}
    for start in range(0, len(prompts), BATCH):
        reached(start)
        batch = prompts[start : start + BATCH]
        embeddings |= zip(batch, base.text_encoder.encode_all(batch, words), strict=True)
    return embeddings


@dataclass(frozen=True)
class Frame:
    """How images and masks are scaled and cropped.

    Attributes:
        resolution: side of the square, in px.
        scale: px per latent px.
        square: whether the middle square is cut out.
        bucket_multiple: the number of px that the sides of buckets are multiples of; 0 makes no buckets.
    """

    resolution: int
    scale: int
    square: bool = True
    bucket_multiple: int = 0

    def fit(self, image: Image.Image) -> Image.Image:
        """Scale and crop an image."""
        if self.bucket_multiple:
            return fit_to_bucket(image, self.resolution, self.bucket_multiple)
        return fit(image, self.resolution, self.square, self.scale)

    def weights(self, mask: Image.Image) -> Tensor:
        """Turn a fitted gray image into the mask [1, h, w] of its latents."""
        small = mask.resize((mask.width // self.scale, mask.height // self.scale), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)).float()[None] / 255


def _examples(base: Base, reference: Reference, prompts: Tensor, frame: Frame, flip: bool) -> list[Example]:
    image, alpha = frame.fit(reference.image), None if reference.alpha is None else frame.fit(reference.alpha)
    examples = []
    for turn in (Image.Image.copy, mirror) if flip else (Image.Image.copy,):
        mean, std = base.encode_image(to_tensor([turn(image)]))
        mask = None if alpha is None else frame.weights(turn(alpha))
        examples += [Example(mean[0], prompts, std[0], mask, tuple(reference.prompts))] * reference.repeats
    return examples


def _check_alphas(references: Sequence[Reference], frame: Frame) -> None:
    for reference in references:
        if reference.alpha is not None and not (frame.weights(frame.fit(reference.alpha)) > 0).any():
            where = " in its middle square" if frame.square and not frame.bucket_multiple else ""
            raise UserError(
                f"The image {shown(reference.source)} is fully transparent{where}, so with alpha_masks nothing of it "
                "would count: take it out of the folder, or leave out alpha_masks."
            )
