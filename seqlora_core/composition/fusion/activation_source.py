"""The activations and weights that fusions need from a base model, in terms of a few operations of a loaded model."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ...data.prompts import PHOTO_OF, subject_prompt
from ...data.words import NO_WORDS, Words
from ...model.activations import TEXT_GROUP, LayerInputs, input_group
from ..selection import SelectedConcept


class ModelSource(ABC):
    """A `fusion.Source` that runs a model.

    Inputs of spatial layers are captured while the model with one concept samples "photo of a TOKEN CLASS" without
    guidance.  Inputs of the text's keys and values are the concept's words in that prompt and in "TOKEN CLASS" (both
    as in Mix-of-Show).
    """

    @abstractmethod
    def encode_words(self, words: str, after: str = "", learned: Words = NO_WORDS) -> Tensor:
        """Return the embeddings of `words` and the end token in the prompt "`after` `words`": [t, d] float32, CPU.

        Args:
            learned: the vectors of learned words.
        """

    @abstractmethod
    def inputs_while_sampling(
        self, prompt: str, part: SelectedConcept, layers: Collection[str]
    ) -> Mapping[str, LayerInputs]:
        """Capture what these layers receive while the model with one concept samples a prompt."""

    @abstractmethod
    def weight(self, layer: str) -> Tensor:
        """Return W0 of a layer, [m, n] float32 on the CPU."""

    @abstractmethod
    def between(self) -> None:
        """Called before every layer; may raise to cancel."""

    def inputs(self, part: SelectedConcept, layers: Collection[str]) -> Mapping[str, LayerInputs]:
        inputs = dict.fromkeys(layers, LayerInputs.from_samples(self.words(part)))
        if spatial := {layer for layer in layers if input_group(layer) != TEXT_GROUP}:
            inputs |= self.inputs_while_sampling(subject_prompt(part.subject), part, spatial)
        return inputs

    def words(self, part: SelectedConcept) -> Tensor:
        alone = self.encode_words(part.subject, learned=part.words)
        return torch.cat([alone, self.encode_words(part.subject, PHOTO_OF, part.words)])

    def captions(self, captions: Sequence[str]) -> Tensor:
        return torch.cat([self.encode_words(caption) for caption in captions])
