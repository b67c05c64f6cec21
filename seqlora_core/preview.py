"""What a concept looks like while it is being learned: a few sampler steps, without guidance.

Cheap rather than beautiful: it shows whether the subject appears at all, and whether it falls apart.
"""

from itertools import pairwise

import torch
from torch import Tensor

from .denoising import DenoisingObjective, named_generator
from .examples import EncodedConcept

STEPS = 8  # forward passes of one picture; a training step of the default method costs about nine


def preview_latents(
    objective: DenoisingObjective, factors: tuple[list[Tensor], list[Tensor]], data: EncodedConcept, seed: int
) -> Tensor:
    """Deterministic DDIM (Song et al., ICLR 2021, eq. 12 with eta = 0) from one fixed noise and the first prompt.

    The noise has its own generator and nothing is recorded for a backward pass, so a training is the same with and
    without previews; all of a training's previews start alike, so they can be compared.

    Args:
        factors: A and B as they are now.

    Returns:
        [1, 4, h, w] on the training device, in the scale of the examples' latents.
    """
    example, schedule = data.examples[0], objective.denoiser.alphas_cumprod.cpu()
    height, width = (min(side, data.window or side) for side in example.mean.shape[1:])
    x = torch.randn(1, 4, height, width, generator=named_generator(seed, "preview"))
    x, text = x.to(objective.denoiser.device), example.prompts[:1].float().to(objective.denoiser.device)
    timesteps = torch.linspace(len(schedule) - 1, 0, STEPS + 1).long()
    for now, following in pairwise(timesteps):
        noise = objective.predict_noise(*factors, x, now[None].to(x.device), text)
        clean = (x - (1 - schedule[now]).sqrt() * noise) / schedule[now].sqrt()
        x = schedule[following].sqrt() * clean + (1 - schedule[following]).sqrt() * noise
    return clean
