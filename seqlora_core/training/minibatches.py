"""The minibatches of a step: a pure function of the seed and the step's number."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.dataset import EncodedConcept, Example
from ..model.denoiser import Denoiser
from ..randomness import named_generator
from .config import ResolvedConfig
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
    with_earlier: Tensor | None = None  # [b], which images see the earlier concepts; None is all
    texts: tuple[str, ...] = ()  # b prompts, where their examples know them
    own_rows: Tensor | None = None  # [b, tokens], the rows of the text on which the concept acts; None is all
    timestep_weights: Tensor | None = None  # [b], of each image's error; None weights all alike

    def squared_error(self, prediction: Tensor) -> Tensor:
        """Compute the weighted mean squared error over the latent values inside the mask, a scalar."""
        error = (prediction.to(self.noise.dtype) - self.noise).square().mean(1, keepdim=True)  # [b, 1, h, w]
        if self.timestep_weights is not None:
            error = error * self.timestep_weights.view(-1, 1, 1, 1)
        counted = self.mask.sum().clamp_min(1e-6)  # a window may miss the mask
        return self.weight * (error * self.mask).sum() / counted


def draw_minibatches(
    data: EncodedConcept, denoiser: Denoiser, config: ResolvedConfig, step: int, phase: str = "step"
) -> list[Minibatch]:
    """Draw the micro-batches of a step: a pure function of the seed, the phase and the step's number.

    A resumed training run therefore uses exactly the minibatches of an uninterrupted one, on any device (random numbers
    come from the CPU).  Dropped captions and the noise offset have random numbers of their own: a run with them has the
    minibatches of a run without, except for these.
    """
    generator = named_generator(config.seed, phase, step)
    offsets = named_generator(config.seed, phase, step, "noise offset")
    dropped = named_generator(config.seed, phase, step, "caption dropout")
    empty = data.empty if phase != WORD_PHASE else None  # the empty prompt does not name the word
    share = 1 / config.accumulation
    batches = []
    for micro in range(config.accumulation):
        first = (step * config.accumulation + micro) * config.batch_size
        places = torch.arange(first, first + config.batch_size, device=denoiser.device)
        with_earlier = places % 2 == 0 if config.train_on == "alternate" else None
        sources = [(data.examples, share, empty)]
        if data.prior and config.prior_weight:
            sources.append((data.prior, share * config.prior_weight, None))
        for examples, weight, without_caption in sources:
            positions = range(first, first + config.batch_size)
            picks = [examples[_shuffled(position, len(examples), config.seed)] for position in positions]
            batch = _draw(picks, data.window, generator)
            if without_caption is not None and config.caption_dropout:
                batch.drop_captions(config.caption_dropout, without_caption, dropped)
            batch.add_noise(denoiser.alphas_cumprod.cpu(), generator, config.noise_offset, offsets)
            batches.append(batch.on(denoiser, weight, with_earlier, config.min_snr_gamma))
    return batches


@dataclass
class _Draw:
    """What is drawn for a minibatch, on the CPU; shapes as in `Minibatch`, the latents' as that of the noise."""

    latents: Tensor
    mask: Tensor
    text: Tensor
    texts: tuple[str, ...]
    own_rows: Tensor | None

    def drop_captions(self, share: float, empty: Tensor, generator: torch.Generator) -> None:
        """Show a share of the images with the empty prompt [tokens, d]."""
        chosen = torch.rand(len(self.text), generator=generator) < share
        self.text = torch.where(chosen[:, None, None], empty.float(), self.text)

    def add_noise(
        self, alphas_cumprod: Tensor, generator: torch.Generator, offset: float, offsets: torch.Generator
    ) -> None:
        """Draw noise and timesteps.

        Args:
            offset: size of a constant per image and channel that is part of the noise (Guttenberg, 2023).
        """
        self.noise = torch.randn(self.latents.shape, generator=generator)
        self.timesteps = torch.randint(len(alphas_cumprod), (len(self.latents),), generator=generator)
        if offset:
            self.noise = self.noise + offset * torch.randn(*self.latents.shape[:2], 1, 1, generator=offsets)
        signal = alphas_cumprod[self.timesteps].view(-1, 1, 1, 1)
        self.noisy = signal.sqrt() * self.latents + (1 - signal).sqrt() * self.noise

    def on(self, denoiser: Denoiser, weight: float, with_earlier: Tensor | None, gamma: float) -> Minibatch:
        """The minibatch on the training device."""
        weights = None
        if gamma:
            weights = min_snr_weights(denoiser.alphas_cumprod.cpu(), self.timesteps, gamma)
        # A card takes them while the program goes on; without this, each copy waits for all work before it.
        free = denoiser.device.type == "cuda"
        *tensors, own_rows, weights = (
            None if tensor is None else tensor.to(denoiser.device, non_blocking=free)
            for tensor in (self.noisy, self.timesteps, self.noise, self.text, self.mask, self.own_rows, weights)
        )
        return Minibatch(*tensors, weight, with_earlier, self.texts, own_rows, weights)


def _draw(picks: Sequence[Example], window: int | None, generator: torch.Generator) -> _Draw:
    """Draw windows and prompts of examples."""
    height, width = (min(pick.mean.shape[axis] for pick in picks) for axis in (1, 2))
    if window is not None:
        height, width = min(height, window), min(width, window)
    windows = [_window(pick, height, width, generator) for pick in picks]
    prompts = [_randint(len(pick.prompts), generator) for pick in picks]
    marked = [pick.own_rows[index] for pick, index in zip(picks, prompts, strict=True) if pick.own_rows is not None]
    return _Draw(
        torch.stack([latent for latent, _ in windows]),
        torch.stack([mask for _, mask in windows]),
        torch.stack([pick.prompts[index] for pick, index in zip(picks, prompts, strict=True)]).float(),
        tuple(pick.texts[index] for pick, index in zip(picks, prompts, strict=True) if pick.texts),
        torch.stack(marked) if marked else None,
    )


def _shuffled(position: int, count: int, seed: int) -> int:
    """Return the index of the example at `position` of an endless sequence, which is reshuffled in every epoch."""
    epoch, offset = divmod(position, count)
    return int(torch.randperm(count, generator=named_generator(seed, "epoch", epoch))[offset])


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
