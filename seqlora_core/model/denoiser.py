"""The UNet as the trainer sees it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Denoiser(Protocol):
    """A frozen SD1.5-topology UNet and the one call that training needs of it.

    Implemented by `DiffusersDenoiser`, and by the host's adapter for a model that is already loaded in a graph.
    """

    unet: nn.Module
    device: torch.device
    alphas_cumprod: Tensor  # [T], the schedule's signal power at each timestep

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Epsilon for noisy latents [B, 4, h, w], timesteps [B] and text embeddings [B, tokens, d]: [B, 4, h, w]."""

    def checkpointing(self) -> AbstractContextManager:
        """While the block lasts, activations are computed again in the backward pass instead of kept."""


def sd15_alphas_cumprod(timesteps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """SD1.5's scaled-linear schedule, [timesteps] float32: betas are linear in their square root."""
    betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, dim=0).float()


@dataclass
class DiffusersDenoiser:
    """A diffusers `UNet2DConditionModel`."""

    unet: nn.Module
    alphas_cumprod: Tensor

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        dtype = next(self.unet.parameters()).dtype
        return self.unet(noisy.to(dtype), timesteps, encoder_hidden_states=text.to(dtype)).sample

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        was_training = self.unet.training
        self.unet.train()  # some releases of diffusers checkpoint only then; SD1.5 has no dropout that would wake up
        self.unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            self.unet.disable_gradient_checkpointing()
            self.unet.train(was_training)
