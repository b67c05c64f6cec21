"""Previews of a concept during its training run: a few sampler steps, without guidance.

They are cheap rather than beautiful, and show whether the subject appears at all and whether it falls apart.
"""

import torch
from torch import Tensor

from ..data.dataset import EncodedConcept
from ..model.sampling import ddim
from ..randomness import named_generator
from .objective import DenoisingObjective

STEPS = 8  # forward passes per preview; a training step of the default method costs about nine


def preview_latents(
    objective: DenoisingObjective, factors: tuple[list[Tensor], list[Tensor]], data: EncodedConcept, seed: int
) -> Tensor:
    """Sample latents from one fixed noise and the first prompt (see `sampling.ddim`).

    The noise has its own generator and no graph is recorded, so previews do not change a training run.  All previews of
    a run start from the same noise, so they can be compared.

    Args:
        factors: the current A and B, [m, r] and [n, r] per layer.
        data: the concept; its first example sets the prompt and the size.
        seed: of the noise.

    Returns:
        [1, c, h, w] on the training device, in the scale of the examples' latents.
    """
    example, device = data.examples[0], objective.denoiser.device
    noise = torch.randn(1, len(example.mean), *data.latent_size, generator=named_generator(seed, "preview")).to(device)
    text = example.prompts[:1].float().to(device)
    own_rows = None if example.own_rows is None else example.own_rows[:1].to(device)
    return ddim(
        lambda x, timesteps: objective.predict_noise(*factors, x, timesteps, text, own_rows),
        objective.denoiser.alphas_cumprod,
        noise,
        STEPS,
    )
