"""Images and captions through the frozen VAE and text encoder of a base, once, before training."""

import hashlib
from collections.abc import Sequence

import torch
from PIL.ImageOps import mirror
from torch import Tensor

from ..model.base import Base
from ..training.config import TrainingConfig
from .dataset import EncodedConcept, Example
from .images import Reference, fit, to_tensor
from .prompts import describe_cut_prompts


def encode_concept(
    base: Base,
    references: Sequence[Reference],
    config: TrainingConfig,
    prior: Sequence[Reference] = (),
    keep: Sequence[str] = (),
) -> EncodedConcept:
    """Latents (mean and standard deviation) and text embeddings of all references, on the CPU.

    With random crops the whole picture is encoded, and each step cuts its window out of the latents; flipped pictures
    are encoded as further examples.  A reference with repeats is encoded once and is that many examples.

    Args:
        keep: prompts whose pictures should stay as they are (see `plan.protected_prompts`).
    """
    window = None if config.crop == "center" else config.resolution // base.vae_scale_factor
    prompts = torch.stack([base.encode_prompt(prompt) for prompt in keep]) if keep else None
    examples = _examples(base, references, config)
    return EncodedConcept(examples, _examples(base, prior, config), window, prompts, _source(base, references, prior))


def _source(base: Base, *kinds: Sequence[Reference]) -> str:
    """A hash of what is encoded, and by what; settings aside, which a training knows itself."""
    digest = hashlib.sha256(base.encoding().encode())
    for references in kinds:
        digest.update(f"{len(references)} images".encode())
        for reference in references:
            digest.update(repr((reference.image.size, reference.prompts)).encode())
            digest.update(reference.image.tobytes())
            if reference.repeats != 1:  # without, hashes are those of versions that knew no repeats
                digest.update(f"{reference.repeats} repeats".encode())
    return digest.hexdigest()


def cut_prompts(base: Base, references: Sequence[Reference]) -> list[str]:
    """Report the prompts that are too long for the base's text encoder, as sentences."""
    tokenizer = base.pipeline.tokenizer
    prompts = [prompt for reference in references for prompt in reference.prompts]
    return describe_cut_prompts(
        prompts, lambda prompt: len(tokenizer(prompt, verbose=False).input_ids), tokenizer.model_max_length
    )


def _examples(base: Base, references: Sequence[Reference], config: TrainingConfig) -> list[Example]:
    embeddings: dict[str, Tensor] = {}
    for prompt in dict.fromkeys(prompt for reference in references for prompt in reference.prompts):
        embeddings[prompt] = base.encode_prompt(prompt)  # [tokens, d]
    examples = []
    for reference in references:
        prompts = torch.stack([embeddings[prompt] for prompt in reference.prompts])  # [P, tokens, d]
        image = fit(reference.image, config.resolution, config.crop == "center", base.vae_scale_factor)
        for variant in [image, mirror(image)] if config.flip else [image]:
            mean, std = base.encode_image(to_tensor([variant]))
            examples += [Example(mean[0], prompts, std[0])] * reference.repeats
    return examples
