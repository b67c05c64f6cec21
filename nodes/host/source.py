"""The base model for fusions: the graph's MODEL and CLIP."""

from collections.abc import Collection, Mapping
from functools import cached_property

import comfy.model_management as model_management
import torch
from torch import Tensor

from ...seqlora_core.composition.fusion import FusionSettings
from ...seqlora_core.composition.fusion.activation_source import ModelSource
from ...seqlora_core.composition.selection import SelectedConcept
from ...seqlora_core.data.words import NO_WORDS, Words
from ...seqlora_core.model.activations import LayerInputs, capture_inputs
from ...seqlora_core.model.adapters import attach
from ...seqlora_core.model.sampling import ddim
from ...seqlora_core.model.sd15 import SD15, find_layers
from ...seqlora_core.randomness import named_generator
from . import CLIP, ModelPatcher
from .model import HostDenoiser, unpatched_weights
from .texts import TextEncoder


class HostSource(ModelSource):
    """A `Source` that checks for Cancel.  The UNet runs only for concepts with layers that receive image features.

    Args:
        resolution: side of the images that are sampled for these, in px.
    """

    def __init__(self, model: ModelPatcher, clip: CLIP, settings: FusionSettings, resolution: int) -> None:
        self._model, self._settings = model, settings
        self._texts = TextEncoder(clip)
        side = resolution // SD15.vae_scale_factor
        self._latents = (1, SD15.latent_channels, side, side)
        self._denoiser = HostDenoiser(model)

    def between(self) -> None:
        model_management.throw_exception_if_processing_interrupted()

    def encode_words(self, words: str, after: str = "", learned: Words = NO_WORDS) -> Tensor:
        texts, prompt = self._texts.knowing(learned), f"{after} {words}".strip()
        first = texts.count_tokens(after) - 1  # the start token, and those of `after`
        return texts.encode([prompt])[0][first : texts.count_tokens(prompt)]

    def inputs_while_sampling(
        self, prompt: str, part: SelectedConcept, layers: Collection[str]
    ) -> Mapping[str, LayerInputs]:
        denoiser, settings = self._denoiser, self._settings
        text = self._texts.knowing(part.words).encode([prompt])

        def predict(x: Tensor, timesteps: Tensor) -> Tensor:
            self.between()
            return denoiser.predict_noise(x, timesteps, text.to(x.device))

        noise = torch.randn(self._latents, generator=named_generator(settings.seed, "fusion")).to(denoiser.device)
        found = find_layers(denoiser.unet)
        adapters = {name: adapter.to(denoiser.device) for name, adapter in part.scaled().items()}
        with denoiser.loaded(), attach(found, adapters):
            return capture_inputs(
                {name: layer for name, layer in found.items() if name in layers},
                lambda: ddim(predict, denoiser.alphas_cumprod, noise, settings.sampling_steps),
                settings.rows,
            )

    def weight(self, layer: str) -> Tensor:
        return self._weights[layer].float().cpu()

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        return unpatched_weights(self._model)
