"""What fusions ask of a base model, out of what any loaded model can do."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ...data.prompts import PHOTO_OF, subject_prompt
from ...model.activations import TEXT_GROUP, LayerInputs, input_group
from ..selection import SelectedConcept


class ModelSource(ABC):
    """A `fusion.Source` that runs a model.

    Spatial layers are watched while the model with one concept samples "photo of a TOKEN CLASS" without guidance; keys
    and values of text get the concept's words from that prompt and from "TOKEN CLASS" alone (both as Mix-of-Show does).
    """

    @abstractmethod
    def encode_words(self, words: str, after: str = "") -> Tensor:
        """[tokens, d] float32 on the CPU, of words up to and with the end token, as they stand after other ones."""

    @abstractmethod
    def inputs_while_sampling(
        self, prompt: str, part: SelectedConcept, layers: Collection[str]
    ) -> Mapping[str, LayerInputs]:
        """What these layers read while the model with one concept samples a prompt."""

    @abstractmethod
    def weight(self, layer: str) -> Tensor:
        """W0 [m, n] float32 on the CPU."""

    @abstractmethod
    def between(self) -> None:
        """Called before every layer; may raise."""

    def inputs(self, part: SelectedConcept, layers: Collection[str]) -> Mapping[str, LayerInputs]:
        inputs = dict.fromkeys(layers, LayerInputs.from_samples(self.words(part)))
        if spatial := {layer for layer in layers if input_group(layer) != TEXT_GROUP}:
            inputs |= self.inputs_while_sampling(subject_prompt(part.subject), part, spatial)
        return inputs

    def words(self, part: SelectedConcept) -> Tensor:
        return torch.cat([self.encode_words(part.subject), self.encode_words(part.subject, after=PHOTO_OF)])

    def captions(self, captions: Sequence[str]) -> Tensor:
        return torch.cat([self.encode_words(caption) for caption in captions])
