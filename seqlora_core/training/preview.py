"""What a concept looks like while it is being learned: a few sampler steps, without guidance.

Cheap rather than beautiful: it shows whether the subject appears at all, and whether it falls apart.
"""

import torch
from torch import Tensor

from ..data.dataset import EncodedConcept
from ..model.sampling import ddim
from ..randomness import named_generator
from .objective import DenoisingObjective

STEPS = 8  # forward passes of one picture; a training step of the default method costs about nine


def preview_latents(
    objective: DenoisingObjective, factors: tuple[list[Tensor], list[Tensor]], data: EncodedConcept, seed: int
) -> Tensor:
    """A picture from one fixed noise and the first prompt (see `sampling.ddim`).

    The noise has its own generator and nothing is recorded for a backward pass, so a training is the same with and
    without previews; all of a training's previews start alike, so they can be compared.

    Args:
        factors: A and B as they are now.

    Returns:
        [1, 4, h, w] on the training device, in the scale of the examples' latents.
    """
    example, device = data.examples[0], objective.denoiser.device
    noise = torch.randn(1, len(example.mean), *data.latent_size, generator=named_generator(seed, "preview")).to(device)
    text = example.prompts[:1].float().to(device)
    return ddim(
        lambda x, timesteps: objective.predict_noise(*factors, x, timesteps, text),
        objective.denoiser.alphas_cumprod,
        noise,
        STEPS,
    )
