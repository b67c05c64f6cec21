"""Sample images with confined concepts and regions, with the base's own diffusers pipeline."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.words import NO_WORDS, Words
from ..model.adapters import Adapter, attach
from ..model.base import Base
from ..model.sampling import SamplingSettings, generate
from ..model.sd15 import find_layers, receives_text
from .confinement import Confinement, confine
from .regions import Canvas, Region, attend_in_regions, covered_tokens, region_weights
from .selection import SelectedConcept


def confine_on(
    base: Base,
    prompt: str,
    parts: Sequence[SelectedConcept],
    settings: SamplingSettings,
    words: Words = NO_WORDS,
    regions: Sequence[Region] = (),
    own_words_in_regions: bool = False,
) -> Confinement:
    """Confine concepts as the base's tokenizer places their words (see `confinement.confine`)."""
    encoder = base.text_encoder
    return confine(
        parts,
        (settings.negative_prompt, prompt),
        lambda text: encoder.count_tokens(text, words),
        encoder.tokenizer.model_max_length,
        words=words,
        regions=regions,
        own_words_in_regions=own_words_in_regions,
    )


def generate_confined(
    base: Base,
    confinement: Confinement,
    settings: SamplingSettings,
    words: Words = NO_WORDS,
    unconfined: Mapping[str, Adapter] | None = None,
) -> list[Image.Image]:
    """Sample images of the prompts that a `Confinement` was made for; the UNet runs as often as for a plain prompt.

    Args:
        settings: with the negative prompt that the confinement was made for.
        words: as for `sampling.generate`.
        unconfined: adapters that act everywhere as well.

    Raises:
        UserError: see `sampling.generate`.
    """
    run = _Run(base, confinement, settings.count, words)
    layers = find_layers(base.pipeline.unet)
    file = {name: adapter.to(base.device) for name, adapter in (unconfined or {}).items()}
    with attach(layers, file), run.watching(), run.regional_attention():
        return generate(base, confinement.texts[0][1], confinement.adapters, settings, words, run.scale)


class Shares(NamedTuple):
    """What each region has of a layer's tokens: its share of each, [regions, tokens], and the tokens with a share."""

    weights: Tensor
    tokens: list[Tensor]


class _Run:
    """What layers must know of a sampling run: the batch, the canvas, the progress, and which text they receive.

    Args:
        images: images per prompt in the batch.
    """

    def __init__(self, base: Base, confinement: Confinement, images: int, words: Words) -> None:
        self._base, self._confinement, self._images = base, confinement, images
        encode = base.text_encoder.encode_weighted
        self._regional_texts = [  # [2, tokens, d] each
            torch.stack([encode(prompt, words) for prompt in pair]).to(base.device) for pair in confinement.texts[1:]
        ]
        self._rows, self._canvas, self._progress = 0, Canvas(1, 1), 0.0
        self._text = 0  # the text that keys and values are being made of
        self._weights: dict[tuple, Shares] = {}

    @property
    def prompts(self) -> int:
        """Rows of the batch per image: 2 with guidance (negative prompt, prompt), or 1."""
        return self._rows // self._images

    def scale(self, layer: str, down: Tensor) -> Tensor:
        """Scale the directions of a layer, [rows, tokens, sum of ranks] (see `adapters.attach`)."""
        if receives_text(layer):
            factors = self._confinement.text_factors(layer, self._text)[-self.prompts :]
            factors = factors.repeat_interleave(down.shape[0] // self.prompts, 0)
        else:
            factors = self._confinement.image_factors(layer, self.shares(down.shape[1]).weights.cpu())
        return down * factors.to(down)

    def shares(self, tokens: int) -> Shares:
        """What each region has of a layer's tokens now."""
        regions = self._confinement.regions
        acting = tuple(region.acts_at(self._progress) for region in regions)
        key = self._canvas, tokens, acting
        if key not in self._weights:
            weights = region_weights(regions, *self._canvas.grid(tokens), self._progress)
            covered = [own.to(self._base.device) for own in covered_tokens(weights)]
            self._weights[key] = Shares(weights.to(self._base.device), covered)
        return self._weights[key]

    def regional_keys_and_values(self, attention: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Make one layer's keys and values of every region, for the whole batch."""
        made = []
        for text, embeddings in enumerate(self._regional_texts, start=1):
            self._text = text
            embeddings = embeddings[-self.prompts :]
            keys_values = attention.to_k(embeddings), attention.to_v(embeddings)
            made.append(tuple(part.repeat_interleave(self._images, 0) for part in keys_values))
        self._text = 0
        return made

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the block lasts, follow the calls of the UNet."""
        scheduler = self._base.pipeline.scheduler

        def follow(unet: nn.Module, inputs: tuple) -> None:
            latents, timestep = inputs[:2]
            self._rows, self._canvas = latents.shape[0], Canvas(*latents.shape[-2:])
            timesteps = scheduler.timesteps
            done = (timesteps == timestep.to(timesteps.device)).nonzero()[0].item()
            self._progress = done / len(timesteps)

        hook = self._base.pipeline.unet.register_forward_pre_hook(follow)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def regional_attention(self) -> Iterator[None]:
        """While the block lasts, let every cross-attention of the UNet attend to the regions' texts, too."""
        unet = self._base.pipeline.unet
        layers = {name.rpartition(".")[0] for name in find_layers(unet) if receives_text(name)}
        attentions = [unet.get_submodule(name) for name in layers] if self._confinement.regions else []
        plain = [attention.processor for attention in attentions]
        for attention, processor in zip(attentions, plain, strict=True):
            attention.set_processor(_RegionalProcessor(self, processor))
        try:
            yield
        finally:
            for attention, processor in zip(attentions, plain, strict=True):
                attention.set_processor(processor)


class _RegionalProcessor:
    """A diffusers attention processor of one cross-attention, for one sampling run.

    The keys and values of the regions depend on the texts alone, so they are made in the first step that needs them.

    Args:
        plain: the layer's own processor, which serves the steps in which no region acts.
    """

    def __init__(self, run: _Run, plain: Any) -> None:
        self._run, self._plain = run, plain
        self._regional: list[tuple[Tensor, Tensor]] | None = None

    def __call__(
        self,
        attention: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        weights, tokens = self._run.shares(hidden_states.shape[1])
        if not any(len(own) for own in tokens):
            return self._plain(attention, hidden_states, encoder_hidden_states, attention_mask, **settings)
        if self._regional is None:
            self._regional = self._run.regional_keys_and_values(attention)

        def heads(x: Tensor) -> Tensor:  # [rows, tokens, width] -> [rows, heads, tokens, width / heads]
            return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

        queries = heads(attention.to_q(hidden_states))

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            output = F.scaled_dot_product_attention(queries, heads(keys), heads(values))
            return output.transpose(1, 2).flatten(2)

        own = attend(queries, attention.to_k(encoder_hidden_states), attention.to_v(encoder_hidden_states))
        output = attend_in_regions(
            lambda region, tokens: attend(queries[:, :, tokens], *self._regional[region]), own, weights, tokens
        )
        project, dropout = attention.to_out
        return dropout(project(output))
