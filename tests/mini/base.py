"""The mini base's UNet and text encoder, trained together on the pool's latents."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .pictures import PLAIN, WORDY, Habits, Scene, caption
from .pool import ARRANGED, FIRST, Pool, load_pool
from .runs import Run, Schedule, adam, autocast, muon, one_cycle, plateau
from .tokenizer import LENGTH, tokenize
from .vae import latents_path, scaling_factor

BATCH = 64
PARTS = 2  # of a batch on the CPU, each on a core of its own: a half faster than two threads in every operation
TEXT_WIDTH = 128
UNCONDITIONAL = 0.1
MIN_SNR = 5.0


@dataclass(frozen=True)
class Cycle:
    """A part of the training that goes on from the weights of the one before it."""

    steps: int
    step_size: float
    pool: Pool
    habits: Habits
    schedule: Schedule
    optimizer: Callable[[nn.Module, float], Optimizer]


CYCLES = (
    Cycle(8_000, 1e-3, FIRST, WORDY, one_cycle, adam),
    Cycle(6_000, 6e-4, FIRST, WORDY, one_cycle, adam),
    Cycle(3_700, 8e-4, ARRANGED, PLAIN, plateau, muon),
)


class Base(nn.Module):
    """UNet and text encoder as one module, so that one run trains both."""

    def __init__(self, vocabulary: int):
        super().__init__()
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(80, 112, 96),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=TEXT_WIDTH,
                projection_dim=TEXT_WIDTH,
                intermediate_size=4 * TEXT_WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
            )
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(ids)[0]).sample


def make_scheduler() -> DDIMScheduler:
    """SD1.5's."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_base(number: int, tokenizer: CLIPTokenizer, work: Path, device: torch.device) -> None:
    """Writes `base<number>.pt` into the working folder, from the averaged weights of the cycle before; goes on where an
    earlier run stopped."""
    cycle = CYCLES[number - 1]
    model = Base(len(tokenizer)) if number == 1 else load_trained(len(tokenizer), work, number - 1)
    model = model.requires_grad_(True).train().to(device)
    if device.type == "cpu":
        # The fused kernel's backward pass is the slowest part of all there (measured on torch 2.13).
        model.unet.set_attn_processor(AttnProcessor())
        model.text_encoder.set_attn_implementation("eager")
        model.unet.to(memory_format=torch.channels_last)
        torch.set_num_threads(1)
    first = sum(earlier.steps for earlier in CYCLES[: number - 1])
    run = Run(model, _path(work, number), cycle.steps, cycle.step_size, 0.999, first, cycle.schedule, cycle.optimizer)
    _, scenes = load_pool(cycle.pool, work)
    _train(run, model, cycle.habits, scenes, load_latents(cycle.pool, work), tokenizer)


def _train(
    run: Run, model: Base, habits: Habits, scenes: list[Scene], latents: Tensor, tokenizer: CLIPTokenizer
) -> None:
    signal = make_scheduler().alphas_cumprod
    parts = PARTS if run.device.type == "cpu" else 1
    with ThreadPoolExecutor(parts) as workers:
        while run.going():
            chosen = run.rng.integers(len(scenes), size=BATCH)
            ids = _captions(run.rng, [scenes[index] for index in chosen], habits, tokenizer)
            mean, std = latents[:, chosen]
            clean = mean + std * torch.randn(mean.shape, generator=run.noise)
            noise = torch.randn(mean.shape, generator=run.noise)
            timesteps = torch.randint(len(signal), (BATCH,), generator=run.noise)
            share = signal[timesteps].view(-1, 1, 1, 1)
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
            batch = (noisy, timesteps, ids, noise, _weights(signal)[timesteps])
            chunks = zip(*(tensor.to(run.device).chunk(parts) for tensor in batch), strict=True)
            run.step_along(*_mean([*workers.map(lambda chunk: _gradients(model, *chunk), chunks)]))
    run.finish()


def _gradients(
    model: Base, noisy: Tensor, timesteps: Tensor, ids: Tensor, noise: Tensor, weights: Tensor
) -> tuple[float, tuple[Tensor, ...]]:
    """The loss of a part of a batch, and its gradients by all parameters."""
    with autocast(noisy.device):
        predicted = model(noisy, timesteps, ids)
    loss = (weights * (predicted.float() - noise).square().mean((1, 2, 3))).mean()
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def _mean(parts: Sequence[tuple[float, tuple[Tensor, ...]]]) -> tuple[float, list[Tensor]]:
    losses, gradients = zip(*parts, strict=True)
    return sum(losses) / len(losses), [torch.stack(own).mean(0) for own in zip(*gradients, strict=True)]


def load_trained(vocabulary: int, work: Path, number: int | None = None) -> Base:
    """The averaged weights of a cycle, or of the last one there is, frozen, on the CPU."""
    if number is None:
        number = max(i for i in range(1, len(CYCLES) + 1) if _path(work, i).exists())
    model = Base(vocabulary)
    state = torch.load(_path(work, number), map_location="cpu", weights_only=True)
    model.load_state_dict(state["average"])
    return model.eval().requires_grad_(False)


def _path(work: Path, number: int) -> Path:
    return work / f"base{number}.pt"


def load_latents(pool: Pool, work: Path) -> Tensor:
    """[2, N, 4, 8, 8] float32: means and standard deviations, scaled to unit variance."""
    return torch.from_numpy(np.load(latents_path(pool, work))).float() * scaling_factor(work)


def _weights(signal: Tensor) -> Tensor:
    """Min-SNR weights of the timesteps (Hang et al., ICCV 2023, for noise prediction): less for faint noise, where the
    loss is large and little of what a picture shows is decided."""
    ratio = signal / (1 - signal)
    return ratio.clamp(max=MIN_SNR) / ratio


def _captions(rng: np.random.Generator, scenes: list[Scene], habits: Habits, tokenizer: CLIPTokenizer) -> Tensor:
    texts = ["" if rng.random() < UNCONDITIONAL else caption(rng, scene, habits) for scene in scenes]
    return torch.from_numpy(tokenize(tokenizer, texts)).long()
