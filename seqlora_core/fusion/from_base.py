"""What fusions ask of a base model, asked of a loaded one."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..activations import TEXT_GROUP, LayerInputs, input_group
from ..bases import Base
from ..composition import Part
from ..generation import inputs_while_sampling
from ..layers import find_layers
from .fusion import FusionSettings


class BaseSource:
    """A `fusion.Source` that runs the base.

    Spatial layers are watched while the base with one concept samples "photo of a TOKEN CLASS" without guidance; keys
    and values of text get the concept's words from that prompt and from "TOKEN CLASS" alone (both as Mix-of-Show does).
    """

    def __init__(self, base: Base, settings: FusionSettings) -> None:
        self._base, self._settings = base, settings
        self._layers = find_layers(base.pipeline.unet)

    def inputs(self, part: Part, layers: Collection[str]) -> Mapping[str, LayerInputs]:
        inputs = dict.fromkeys(layers, LayerInputs.of_rows(self.words(part)))
        if spatial := {layer for layer in layers if input_group(layer) != TEXT_GROUP}:
            inputs |= self._sampled(part, spatial)
        return inputs

    def _sampled(self, part: Part, layers: Collection[str]) -> Mapping[str, LayerInputs]:
        settings = self._settings
        return inputs_while_sampling(
            self._base,
            f"photo of a {part.subject}",
            part.scaled(),
            layers=layers,
            steps=settings.sampling_steps,
            seed=settings.seed,
            rows=settings.rows,
        )

    def words(self, part: Part) -> Tensor:
        encode = self._base.encode_words
        return torch.cat([encode(part.subject), encode(part.subject, after="photo of a")])

    def captions(self, captions: Sequence[str]) -> Tensor:
        return torch.cat([self._base.encode_words(caption) for caption in captions])

    def weight(self, layer: str) -> Tensor:
        return self._layers[layer].weight.detach().float().cpu()
