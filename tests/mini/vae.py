"""The mini base's autoencoder: SD1.5's architecture, 32 px pictures to 8x8 latents of 4 channels."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from .pictures import SIZE
from .runs import Run

BATCH = 24
STEPS = 2_500
KL_WEIGHT = 1e-3


def make_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=SIZE,
    )


def train_vae(pixels: np.ndarray, work: Path) -> None:
    """Adds `vae.pt` to the working folder; goes on where an earlier run stopped."""
    vae = make_vae()
    run = Run(vae, work / "vae.pt", STEPS, learning_rate=2e-3)
    while run.going():
        batch = as_tensor(pixels[np.sort(run.rng.choice(len(pixels), BATCH, replace=False))])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            restored = vae.decode(posterior.sample(run.noise)).sample
        run.step(_loss(restored.float(), batch, posterior))
    run.finish()


def load_vae(work: Path) -> AutoencoderKL:
    vae = make_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True)["average"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_pool(pixels: np.ndarray, work: Path) -> None:
    """Writes `latents.npy` [2, N, 4, 8, 8] float16: posterior means and standard deviations, unscaled."""
    vae = load_vae(work)
    stored = np.lib.format.open_memmap(work / "latents.npy", "w+", np.float16, (2, len(pixels), 4, 8, 8))
    for start in range(0, len(pixels), 500):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(as_tensor(pixels[start : start + 500])).latent_dist
        stored[0, start : start + 500], stored[1, start : start + 500] = posterior.mean.float(), posterior.std.float()
    stored.flush()


def as_tensor(pixels: np.ndarray) -> Tensor:
    """[N, 3, H, W] float32 in -1..1 of [N, H, W, 3] uint8."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _loss(restored: Tensor, batch: Tensor, posterior) -> Tensor:
    """Absolute error of the pictures and of their edges, which keeps eyes and outlines sharp."""
    error = restored - batch
    edges = functional.avg_pool2d(error, 2)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return error.abs().mean() + error.square().mean() + edges.abs().mean() + KL_WEIGHT * kl
