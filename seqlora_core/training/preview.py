"""Previews of a concept during its training run: a few sampler steps, without guidance.

They are cheap rather than beautiful, and show whether the subject appears at all and whether it falls apart.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..data.dataset import EncodedConcept, Example
from ..data.words import Words
from ..model.sampling import ddim
from ..model.text_encoder import TextEncoder
from ..monitor import Monitor
from ..randomness import named_generator
from .objective import DenoisingObjective

STEPS = 8  # forward passes per preview; a training step of the default method costs about nine


def preview_latents(
    objective: DenoisingObjective, factors: tuple[list[Tensor], list[Tensor]], data: EncodedConcept, seed: int
) -> Tensor:
    """Sample latents from one fixed noise and one prompt (see `sampling.ddim`).

    The noise has its own generator and no graph is recorded, so previews do not change a training run.  All previews of
    a run start from the same noise, so they can be compared.

    Args:
        factors: the current A and B, [m, r] and [n, r] per layer.
        data: the concept; `data.preview` or else its first example sets the prompt and the size.
        seed: of the noise.

    Returns:
        [1, c, h, w] on the training device, in the scale of the examples' latents.
    """
    example, device = data.preview or data.examples[0], objective.denoiser.device
    noise = torch.randn(1, len(example.mean), *data.latent_size, generator=named_generator(seed, "preview")).to(device)
    text = example.prompts[:1].float().to(device)
    own_rows = None if example.own_rows is None else example.own_rows[:1].to(device)
    return ddim(
        lambda x, timesteps: objective.predict_noise(*factors, x, timesteps, text, own_rows),
        objective.denoiser.alphas_cumprod,
        noise,
        STEPS,
    )


@torch.no_grad()
def with_preview_prompt(data: EncodedConcept, prompt: str, encoder: TextEncoder, words: Words) -> EncodedConcept:
    """Have previews of `data` show a prompt.

    Args:
        words: the vectors of the learned words that the prompt may name; the concept's own is encoded as it is learned.
    """
    with encoder.loaded():
        embedding = encoder.encode([prompt], words).float().cpu()
    return replace(data, preview=Example(data.examples[0].mean, embedding, texts=(prompt,)))


def show_preview(monitor: Monitor, latents: Tensor, step: int) -> None:
    """Give a preview to the monitor, or say that it cannot be shown."""
    if latents.isfinite().all():
        monitor.previewed(latents)
    else:
        monitor.message(f"The preview of step {step} is not finite and is left out.")
