"""Encode images and captions once, before training, with the frozen VAE and text encoder of a base."""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from PIL.ImageOps import mirror
from torch import Tensor

from ..hashing import data_fingerprint
from ..model.base import Base
from ..model.text_encoder import BATCH
from ..monitor import Monitor, Stage
from .dataset import EncodedConcept, Example
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
    flip: bool = False,
    words: Words = NO_WORDS,
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
        flip: whether mirrored images are encoded as further examples.
        words: the vectors of the bank's learned words, which prompts may name.
        monitor: receives the progress, and is asked between passes whether to stop.

    Raises:
        Cancelled: the monitor asks to stop.
    """
    images = [*references, *prior]
    prompts = list(dict.fromkeys([*(prompt for image in images for prompt in image.prompts), *protected]))
    text = f"encoding {counted(len(images), 'image')} and {counted(len(prompts), 'prompt')}"
    stage = Stage(monitor or Monitor(), text, len(images) + len(prompts))
    embeddings = _embeddings(base, prompts, words, stage.reached)
    numbers = count(len(prompts))

    def examples(group: Sequence[Reference]) -> list[Example]:
        made = []
        for reference in group:
            stage.reached(next(numbers))
            own = torch.stack([embeddings[prompt] for prompt in reference.prompts])  # [P, tokens, d]
            made += _examples(base, reference, own, resolution, crop == "center", flip)
        return made

    window = None if crop == "center" else resolution // base.vae_scale_factor
    kept = torch.stack([embeddings[prompt] for prompt in protected]) if protected else None
    source = source_fingerprint(base, references, prior)
    return EncodedConcept(examples(references), examples(prior), window, kept, source)


def source_fingerprint(base: Base, references: Sequence[Reference], prior: Sequence[Reference] = ()) -> str:
    """The fingerprint by which training runs on these images recognize the same data, without encoding them."""
    groups = [[(r.image, r.prompts, r.repeats) for r in group] for group in (references, prior)]
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


def _examples(
    base: Base, reference: Reference, prompts: Tensor, resolution: int, square: bool, flip: bool
) -> list[Example]:
    image = fit(reference.image, resolution, square, base.vae_scale_factor)
    examples = []
    for variant in [image, mirror(image)] if flip else [image]:
        mean, std = base.encode_image(to_tensor([variant]))
        examples += [Example(mean[0], prompts, std[0], texts=tuple(reference.prompts))] * reference.repeats
    return examples
