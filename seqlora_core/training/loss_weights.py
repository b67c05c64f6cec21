"""Weights of timesteps in the loss."""

import torch
from torch import Tensor


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float) -> Tensor:
    """Weight the squared error of each timestep as min-SNR does (Hang et al., ICCV 2023).

    With the signal-to-noise ratio `SNR = a / (1 - a)`, the weight is `min(SNR, gamma) / SNR` for a model that predicts
    the noise (diffusers' scripts have the same).

    Args:
        alphas_cumprod: [T], the signal power `a` at each timestep.
        timesteps: [b].

    Returns:
        [b].
    """
    signal = alphas_cumprod[timesteps]
    ratio = signal / (1 - signal)
    return torch.clamp(gamma / ratio, max=1)  # also where a schedule ends in pure noise, with a ratio of 0
