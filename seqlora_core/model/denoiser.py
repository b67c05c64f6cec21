"""The UNet as the trainer uses it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .architecture import Architecture
from .sd15 import SD15


class Denoiser(Protocol):
    """A frozen UNet and the one call that training needs from it.

    Implemented by `DiffusersDenoiser`, and by the host's adapter for a model that is already loaded in a graph.

    Attributes:
        alphas_cumprod: [T], the schedule's signal power at each timestep.
        architecture: the family of base models that the UNet belongs to.
    """

    unet: nn.Module
    device: torch.device
    alphas_cumprod: Tensor
    architecture: Architecture

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict epsilon.

        Args:
            noisy: [B, c, h, w] latents, h and w in latent px.
            timesteps: [B].
            text: [B, tokens, d] text embeddings.

        Returns:
            [B, c, h, w].
        """

    def checkpointing(self) -> AbstractContextManager:
        """While the block lasts, recompute activations in the backward pass instead of storing them."""


@dataclass
class DiffusersDenoiser:
    """A `Denoiser` over a diffusers `UNet2DConditionModel`."""

    unet: nn.Module
    alphas_cumprod: Tensor
    architecture: Architecture = SD15

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        dtype = next(self.unet.parameters()).dtype
        return self.unet(noisy.to(dtype), timesteps, encoder_hidden_states=text.to(dtype)).sample

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        was_training = self.unet.training
        self.unet.train()  # some releases of diffusers checkpoint only in this mode; SD1.5 has no active dropout
        self.unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            self.unet.disable_gradient_checkpointing()
            self.unet.train(was_training)
