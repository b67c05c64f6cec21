"""The minibatches of a step: a pure function of the seed and the step's number."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.dataset import EncodedConcept, Example
from ..model.denoiser import Denoiser
from ..randomness import named_generator
from .config import ResolvedConfig


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

    def squared_error(self, prediction: Tensor) -> Tensor:
        """Compute the weighted mean squared error over the latent values inside the mask, a scalar."""
        error = (prediction.to(self.noise.dtype) - self.noise).square().mean(1, keepdim=True)  # [b, 1, h, w]
        counted = self.mask.sum().clamp_min(1e-6)  # a window may miss the mask
        return self.weight * (error * self.mask).sum() / counted


def draw_minibatches(
    data: EncodedConcept, denoiser: Denoiser, config: ResolvedConfig, step: int, phase: str = "step"
) -> list[Minibatch]:
    """Draw the micro-batches of a step: a pure function of the seed, the phase and the step's number.

    A resumed training run therefore uses exactly the minibatches of an uninterrupted one, on any device (random numbers
    come from the CPU).
    """
    generator = named_generator(config.seed, phase, step)
    share = 1 / config.accumulation
    batches = []
    for micro in range(config.accumulation):
        first = (step * config.accumulation + micro) * config.batch_size
        places = torch.arange(first, first + config.batch_size, device=denoiser.device)
        with_earlier = places % 2 == 0 if config.train_on == "alternate" else None
        sources = [(data.examples, share)]
        if data.prior and config.prior_weight:
            sources.append((data.prior, share * config.prior_weight))
        for examples, weight in sources:
            order = [
                _shuffled(position, len(examples), config.seed) for position in range(first, first + config.batch_size)
            ]
            picks = [examples[index] for index in order]
            batches.append(_minibatch(picks, data.window, denoiser, generator, weight, with_earlier))
    return batches


def _minibatch(
    picks: Sequence[Example],
    window: int | None,
    denoiser: Denoiser,
    generator: torch.Generator,
    weight: float,
    with_earlier: Tensor | None,
) -> Minibatch:
    height, width = (min(pick.mean.shape[axis] for pick in picks) for axis in (1, 2))
    if window is not None:
        height, width = min(height, window), min(width, window)
    windows = [_window(pick, height, width, generator) for pick in picks]
    latents = torch.stack([latent for latent, _ in windows])  # [b, 4, h, w]
    mask = torch.stack([mask for _, mask in windows])  # [b, 1, h, w]
    prompts = [_randint(len(pick.prompts), generator) for pick in picks]
    text = torch.stack([pick.prompts[index] for pick, index in zip(picks, prompts, strict=True)]).float()
    texts = tuple(pick.texts[index] for pick, index in zip(picks, prompts, strict=True) if pick.texts)
    marked = [pick.own_rows[index] for pick, index in zip(picks, prompts, strict=True) if pick.own_rows is not None]
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(len(denoiser.alphas_cumprod), (len(picks),), generator=generator)
    signal = denoiser.alphas_cumprod.cpu()[timesteps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    # A card takes them while the program goes on; without this, each copy waits for all work before it.
    free = denoiser.device.type == "cuda"
    tensors = (tensor.to(denoiser.device, non_blocking=free) for tensor in (noisy, timesteps, noise, text, mask))
    own_rows = torch.stack(marked).to(denoiser.device, non_blocking=free) if marked else None
    return Minibatch(*tensors, weight, with_earlier, texts, own_rows)


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
