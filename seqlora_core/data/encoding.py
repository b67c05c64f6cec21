"""Encode images and captions once, before training, with the frozen VAE and text encoder of a base."""

from collections.abc import Sequence

import torch
from PIL.ImageOps import mirror

from ..hashing import data_fingerprint
from ..model.base import Base
from .dataset import EncodedConcept, Example
from .images import fit, to_tensor
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
    flip: bool = False,
    words: Words = NO_WORDS,
) -> EncodedConcept:
    """Encode a concept's references into latents (mean and standard deviation) and text embeddings, on the CPU.

    A reference with repeats is encoded once and is that many examples.

    Args:
        resolution: the shorter side that images are scaled to, in px; a multiple of the base's VAE scale factor.
        prior: images of the concept's class.
        protected: prompts whose images a training run must leave as they are (see `training.protected_prompts`).
        crop: "center" cuts the central square; "random" encodes the whole image, and each step of a training run cuts
            its own square out of the latents.
        flip: whether mirrored images are encoded as further examples.
        words: the vectors of the bank's learned words, which prompts may name.
    """

    def examples(images: Sequence[Reference]) -> list[Example]:
        return _examples(base, images, resolution, crop == "center", flip, words)

    window = None if crop == "center" else resolution // base.vae_scale_factor
    prompts = base.text_encoder.encode_all(protected, words) if protected else None
    groups = [[(r.image, r.prompts, r.repeats) for r in images] for images in (references, prior)]
    source = data_fingerprint(base.encoding_fingerprint(), *groups)
    return EncodedConcept(examples(references), examples(prior), window, prompts, source)


def cut_prompts(base: Base, references: Sequence[Reference]) -> list[str]:
    """Report the prompts that are too long for the base's text encoder, as sentences."""
    prompts = [prompt for reference in references for prompt in reference.prompts]
    return describe_cut_prompts(prompts, base.text_encoder.count_tokens, base.pipeline.tokenizer.model_max_length)


def _examples(
    base: Base, references: Sequence[Reference], resolution: int, square: bool, flip: bool, words: Words
) -> list[Example]:
    if not references:
        return []
    texts = list(dict.fromkeys(prompt for reference in references for prompt in reference.prompts))
    embeddings = dict(zip(texts, base.text_encoder.encode_all(texts, words), strict=True))  # each [tokens, d]
    examples = []
    for reference in references:
        prompts = torch.stack([embeddings[prompt] for prompt in reference.prompts])  # [P, tokens, d]
        image = fit(reference.image, resolution, square, base.vae_scale_factor)
        for variant in [image, mirror(image)] if flip else [image]:
            mean, std = base.encode_image(to_tensor([variant]))
            examples += [Example(mean[0], prompts, std[0], texts=tuple(reference.prompts))] * reference.repeats
    return examples
