"""The activations and weights that fusions need, from a base of the command line."""

from collections.abc import Collection, Mapping

from torch import Tensor

from ...data.words import NO_WORDS, Words
from ...model.activations import LayerInputs
from ...model.base import Base
from ...model.sampling import inputs_while_sampling
from ...model.sd15 import find_layers
from ..selection import SelectedConcept
from .activation_source import ModelSource
from .fusion import FusionSettings


class BaseSource(ModelSource):
    """A `fusion.Source` that runs a base."""

    def __init__(self, base: Base, settings: FusionSettings) -> None:
        self._base, self._settings = base, settings
        self._layers = find_layers(base.pipeline.unet)

    def encode_words(self, words: str, after: str = "", learned: Words = NO_WORDS) -> Tensor:
        return self._base.encode_words(words, after, learned)

    def inputs_while_sampling(
        self, prompt: str, part: SelectedConcept, layers: Collection[str]
    ) -> Mapping[str, LayerInputs]:
        settings = self._settings
        return inputs_while_sampling(
            self._base,
            prompt,
            part.scaled(),
            layers=layers,
            steps=settings.sampling_steps,
            seed=settings.seed,
            samples_per_pass=settings.rows,
            words=part.words,
        )

    def between(self) -> None:
        """Does nothing: Ctrl-C interrupts anywhere."""

    def weight(self, layer: str) -> Tensor:
        return self._layers[layer].weight.detach().float().cpu()
