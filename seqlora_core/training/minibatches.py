"""The minibatches of a step: a pure function of the seed and the step's number."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.dataset import EncodedConcept, Example
from ..model.denoiser import Denoiser
from ..randomness import named_generator
from .config import ResolvedConfig
from .epochs import images_before, pick_examples
from .loss_weights import min_snr_weights

WORD_PHASE = "word step"


@dataclass(frozen=True)
class Minibatch:
    """The inputs of one forward pass over `b` examples, all on the training device."""

    noisy: Tensor  # [b, 4, h, w]
    timesteps: Tensor  # [b]
    noise: Tensor  # [b, 4, h, w], the target
    text: Tensor  # [b, tokens, d]
    mask: Tensor  # [b, 1, h, w]
    weight: float  # of its loss in the step's
    with_earlier: tuple[bool, ...] | None = None  # which of b images see the earlier concepts; None is all
    texts: tuple[str, ...] = ()  # b prompts, where their examples know them
    own_rows: Tensor | None = None  # [b, tokens], the rows of the text on which the concept acts; None is all
    timestep_weights: Tensor | None = None  # [b], of each image's error; None weights all alike
    counted: Tensor | None = None  # what the mask of the whole batch adds up to, where this is a share of it

    def squared_error(self, prediction: Tensor) -> Tensor:
        """Compute the weighted mean squared error over the latent values inside the mask, a scalar."""
        error = (prediction.to(self.noise.dtype) - self.noise).square().mean(1, keepdim=True)  # [b, 1, h, w]
        if self.timestep_weights is not None:
            error = error * self.timestep_weights.view(-1, 1, 1, 1)
        counted = self.mask.sum() if self.counted is None else self.counted
        return self.weight * (error * self.mask).sum() / counted.clamp_min(1e-6)  # a window may miss the mask

    def share(self, index: int, count: int) -> "Minibatch":
        """Take one of `count` shares of the images; the errors of all shares add up to that of the minibatch.

        Where there are fewer images than shares, some have an image that does not count.
        """
        if count == 1:
            return self
        images = len(self.noisy)
        first, end = index * images // count, (index + 1) * images // count
        rows = slice(first, max(end, first + 1))
        return replace(
            self,
            **{name: value[rows] for name in _OF_IMAGES if (value := getattr(self, name)) is not None},
            weight=self.weight if end > first else 0.0,
            counted=self.mask.sum(),
        )


_OF_IMAGES = ("noisy", "timesteps", "noise", "text", "mask", "with_earlier", "texts", "own_rows", "timestep_weights")


def draw_minibatches(
    data: EncodedConcept, denoiser: Denoiser, config: ResolvedConfig, step: int, phase: str = "step"
) -> list[Minibatch]:
    """Draw the micro-batches of a step: a pure function of the seed, the phase and the step's number.

    A resumed training run therefore uses exactly the minibatches of an uninterrupted one, on any device (random numbers
    come from the CPU).  Dropped captions and the noise offset have random numbers of their own: a run with them has the
    minibatches of a run without, except for these.
    """
    random = _Random.of_step(config.seed, phase, step)
    empty = data.empty if phase != WORD_PHASE and config.caption_dropout else None  # it does not name the word
    share = 1 / config.accumulation
    batches = []
    for micro in range(config.accumulation):
        number = step * config.accumulation + micro
        sources = [(data.examples, share, empty)]
        if data.prior and config.prior_weight:
            sources.append((data.prior, share * config.prior_weight, None))
        for examples, weight, without_caption in sources:
            picks = pick_examples(examples, config, number)
            first = images_before(examples, config, number)
            turns = tuple((first + place) % 2 == 0 for place in range(len(picks)))
            with_earlier = turns if config.train_on == "alternate" else None
            drawn = _draw(picks, data.window, random, config, without_caption)
            batches.append(_minibatch(drawn, denoiser, random, config, weight, with_earlier))
    return batches


@dataclass(frozen=True)
class _Random:
    """The random numbers of a step: those of every run, and those of settings that are off by default."""

    usual: torch.Generator
    captions: torch.Generator
    offsets: torch.Generator

    @classmethod
    def of_step(cls, seed: int, phase: str, step: int) -> "_Random":
        names = ((), ("caption dropout",), ("noise offset",))
        return cls(*(named_generator(seed, phase, step, *name) for name in names))


class _Drawn(NamedTuple):
    """What is drawn of examples, on the CPU; shapes as in `Minibatch`."""

    latents: Tensor
    mask: Tensor
    text: Tensor
    texts: tuple[str, ...]
    own_rows: Tensor | None


def _draw(
    picks: Sequence[Example], window: int | None, random: _Random, config: ResolvedConfig, empty: Tensor | None
) -> _Drawn:
    """Draw windows and prompts of examples; a share of the prompts is the empty one [tokens, d], if that is given."""
    height, width = (min(pick.mean.shape[axis] for pick in picks) for axis in (1, 2))
    if window is not None:
        height, width = min(height, window), min(width, window)
    windows = [_window(pick, height, width, random.usual) for pick in picks]
    latents = torch.stack([latent for latent, _ in windows])  # [b, 4, h, w]
    mask = torch.stack([mask for _, mask in windows])  # [b, 1, h, w]
    prompts = [_randint(len(pick.prompts), random.usual) for pick in picks]
    text = torch.stack([pick.prompts[index] for pick, index in zip(picks, prompts, strict=True)]).float()
    if empty is not None:
        dropped = torch.rand(len(picks), generator=random.captions) < config.caption_dropout
        text = torch.where(dropped[:, None, None], empty.float().cpu(), text)
    texts = tuple(pick.texts[index] for pick, index in zip(picks, prompts, strict=True) if pick.texts)
    marked = [pick.own_rows[index] for pick, index in zip(picks, prompts, strict=True) if pick.own_rows is not None]
    return _Drawn(latents, mask, text, texts, torch.stack(marked) if marked else None)


def _minibatch(
    drawn: _Drawn,
    denoiser: Denoiser,
    random: _Random,
    config: ResolvedConfig,
    weight: float,
    with_earlier: tuple[bool, ...] | None,
) -> Minibatch:
    """Add noise, and move everything to the training device."""
    schedule, shape = denoiser.alphas_cumprod.cpu(), drawn.latents.shape
    noise = torch.randn(shape, generator=random.usual)
    timesteps = torch.randint(len(schedule), (shape[0],), generator=random.usual)
    if config.noise_offset:  # a constant per image and channel (Guttenberg, 2023)
        noise = noise + config.noise_offset * torch.randn(*shape[:2], 1, 1, generator=random.offsets)
    signal = schedule[timesteps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * drawn.latents + (1 - signal).sqrt() * noise
    weights = min_snr_weights(schedule, timesteps, config.min_snr_gamma) if config.min_snr_gamma else None
    # A card takes them while the program goes on; without this, each copy waits for all work before it.
    free = denoiser.device.type == "cuda"
    *inputs, own_rows, weights = (
        None if tensor is None else tensor.to(denoiser.device, non_blocking=free)
        for tensor in (noisy, timesteps, noise, drawn.text, drawn.mask, drawn.own_rows, weights)
    )
    return Minibatch(*inputs, weight, with_earlier, drawn.texts, own_rows, weights)


def _window(example: Example, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut latents [c, height, width], sampled from their posterior, and mask [1, height, width] at a random place."""
    top = _randint(example.mean.shape[1] - height + 1, generator)
    left = _randint(example.mean.shape[2] - width + 1, generator)
    window = (slice(None), slice(top, top + height), slice(left, left + width))
    latents = example.mean[window].float().cpu()
    if example.std is not None:
        latents = latents + example.std[window].float().cpu() * torch.randn(latents.shape, generator=generator)
    mask = torch.ones(1, height, width) if example.mask is None else example.mask[window].float().cpu()
    return latents, mask


def _randint(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
