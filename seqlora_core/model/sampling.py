"""Latents from noise in a few deterministic steps, through whatever predicts noise."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


def ddim(
    predict_noise: Callable[[Tensor, Tensor], Tensor], alphas_cumprod: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """Deterministic DDIM (Song et al., ICLR 2021, eq. 12 with eta = 0).

    Args:
        predict_noise: (latents [b, 4, h, w], timesteps [b]) -> epsilon [b, 4, h, w].
        alphas_cumprod: [T], the schedule's signal power at each timestep.
        noise: [b, 4, h, w], where it starts.
        steps: forward passes.

    Returns:
        [b, 4, h, w] on the noise's device.
    """
    x, clean, schedule = noise, noise, alphas_cumprod.cpu()
    timesteps = torch.linspace(len(schedule) - 1, 0, steps + 1).long()
    for now, following in pairwise(timesteps):
        epsilon = predict_noise(x, now.expand(len(x)).to(x.device))
        clean = (x - (1 - schedule[now]).sqrt() * epsilon) / schedule[now].sqrt()
        x = schedule[following].sqrt() * clean + (1 - schedule[following]).sqrt() * epsilon
    return clean
