"""The mini base's UNet and text encoder, trained together on the pool's latents."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .pictures import Scene, caption
from .runs import Run
from .tokenizer import LENGTH, tokenize

BATCH = 64
PARTS = 2  # of a batch, each on a core of its own: a quarter faster than two threads in every operation
CYCLES = ((8_000, 1e-3), (6_000, 6e-4))  # steps and largest step size; the second goes on from the first's weights
TEXT_WIDTH = 128
UNCONDITIONAL = 0.1
MIN_SNR = 5.0


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


def train_base(scenes: list[Scene], tokenizer: CLIPTokenizer, work: Path) -> None:
    """Adds a `base<cycle>.pt` a cycle to the working folder; goes on where an earlier run stopped."""
    latents = load_latents(work)
    model = Base(len(tokenizer)).train()
    # On the CPU the fused kernel's backward pass is the slowest part of all (measured on torch 2.13).
    model.unet.set_attn_processor(AttnProcessor())
    model.text_encoder.set_attn_implementation("eager")
    torch.set_num_threads(1)
    first = 0
    for cycle, (steps, step_size) in enumerate(CYCLES):
        run = Run(model, _path(work, cycle), steps, step_size, decay=0.999, first=first)
        _train(run, model, scenes, latents, tokenizer)
        first += steps


def _train(run: Run, model: Base, scenes: list[Scene], latents: Tensor, tokenizer: CLIPTokenizer) -> None:
    signal = make_scheduler().alphas_cumprod
    with ThreadPoolExecutor(PARTS) as workers:
        while run.going():
            chosen = run.rng.integers(len(scenes), size=BATCH)
            ids = _captions(run.rng, [scenes[index] for index in chosen], tokenizer)
            mean, std = latents[:, chosen]
            clean = mean + std * torch.randn(mean.shape, generator=run.noise)
            noise = torch.randn(mean.shape, generator=run.noise)
            timesteps = torch.randint(len(signal), (BATCH,), generator=run.noise)
            share = signal[timesteps].view(-1, 1, 1, 1)
            noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
            batch = (noisy, timesteps, ids, noise, _weights(signal)[timesteps])
            parts = zip(*(tensor.chunk(PARTS) for tensor in batch), strict=True)
            run.step_along(*_mean([*workers.map(lambda part: _gradients(model, *part), parts)]))
    run.finish()


def _gradients(
    model: Base, noisy: Tensor, timesteps: Tensor, ids: Tensor, noise: Tensor, weights: Tensor
) -> tuple[float, tuple[Tensor, ...]]:
    """The loss of a part of a batch, and its gradients by all parameters."""
    # Without the cache: the parts would share cast weights, and with them pieces of each other's graphs.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        predicted = model(noisy, timesteps, ids)
    loss = (weights * (predicted.float() - noise).square().mean((1, 2, 3))).mean()
    return loss.item(), torch.autograd.grad(loss, list(model.parameters()))


def _mean(parts: Sequence[tuple[float, tuple[Tensor, ...]]]) -> tuple[float, list[Tensor]]:
    losses, gradients = zip(*parts, strict=True)
    return sum(losses) / len(losses), [torch.stack(own).mean(0) for own in zip(*gradients, strict=True)]


def load_trained(vocabulary: int, work: Path) -> Base:
    model = Base(vocabulary)
    model.load_state_dict(torch.load(_path(work, len(CYCLES) - 1), weights_only=True)["average"])
    return model.eval().requires_grad_(False)


def _path(work: Path, cycle: int) -> Path:
    return work / f"base{cycle + 1}.pt"


def load_latents(work: Path) -> Tensor:
    """[2, N, 4, 8, 8] float32: means and standard deviations, scaled to unit variance."""
    latents = torch.from_numpy(np.load(work / "latents.npy")).float()
    return latents * scaling_factor(work)


def scaling_factor(work: Path) -> float:
    """What the VAE's latents are multiplied by, as SD1.5's 0.18215."""
    means = np.load(work / "latents.npy", mmap_mode="r")[0, :4_000].astype(np.float32)
    return round(float(1 / means.std()), 5)


def _weights(signal: Tensor) -> Tensor:
    """Min-SNR weights of the timesteps (Hang et al., ICCV 2023, for noise prediction): less for faint noise, where the
    loss is large and little of what a picture shows is decided."""
    ratio = signal / (1 - signal)
    return ratio.clamp(max=MIN_SNR) / ratio


def _captions(rng: np.random.Generator, scenes: list[Scene], tokenizer: CLIPTokenizer) -> Tensor:
    texts = ["" if rng.random() < UNCONDITIONAL else caption(rng, scene) for scene in scenes]
    return torch.from_numpy(tokenize(tokenizer, texts)).long()
