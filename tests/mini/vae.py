"""The mini base's autoencoder: SD1.5's architecture, 32 px pictures to 8x8 latents of 4 channels."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from seqlora_core.mini.identity import IdentityNet

from .identity import focus
from .pictures import SIZE, Scene, as_tensor
from .pool import Pool
from .runs import Run, autocast, muon, plateau

BATCH = 24
STEPS = 2_500
KL_WEIGHT = 1e-3
DECODER_BATCH = 16
DECODER_STEPS = 1_500
EDGE_WEIGHT, FEATURE_WEIGHT = 1.0, 0.3


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


def train_vae(pixels: np.ndarray, work: Path, device: torch.device) -> None:
    """Adds `vae.pt` to the working folder; goes on where an earlier run stopped."""
    vae = make_vae().to(device)
    run = Run(vae, work / "vae.pt", STEPS, step_size=2e-3)
    while run.going():
        batch = as_tensor(pixels[np.sort(run.rng.choice(len(pixels), BATCH, replace=False))]).to(device)
        noise = torch.randn(BATCH, 4, SIZE // 4, SIZE // 4, generator=run.noise).to(device)
        with autocast(device):
            posterior = vae.encode(batch).latent_dist
            restored = vae.decode(posterior.mean + posterior.std * noise).sample
        run.step(_loss(restored.float(), batch, posterior))
    run.finish()


class Decoder(nn.Module):
    """The part of an autoencoder that draws, so that one run trains it alone."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))


def train_decoder(
    pixels: np.ndarray, scenes: list[Scene], pool: Pool, network: IdentityNet, work: Path, device: torch.device
) -> None:
    """Adds `decoder.pt` to the working folder, which goes on from the autoencoder's; the encoder stays, and with it all
    latents."""
    latents = torch.from_numpy(np.load(latents_path(pool, work)))
    decoder, network = Decoder(load_vae(work)).requires_grad_(True).train().to(device), network.to(device)
    run = Run(decoder, work / "decoder.pt", DECODER_STEPS, 1e-3, schedule=plateau, optimizer=muon)
    while run.going():
        chosen = np.sort(run.rng.choice(len(pixels), DECODER_BATCH, replace=False))
        mean, std = latents[:, chosen].float()
        noise = torch.randn(mean.shape, generator=run.noise)
        batch = as_tensor(pixels[chosen]).to(device)
        with autocast(device):
            restored = decoder((mean + std * noise).to(device)).float()
        run.step(_sharp_loss(restored, batch, [scenes[index] for index in chosen], network))
    run.finish()


def load_vae(work: Path) -> AutoencoderKL:
    """The averaged weights, frozen, on the CPU; with the decoder of the second stage, once it is there."""
    vae = make_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", map_location="cpu", weights_only=True)["average"])
    if (work / "decoder.pt").exists():
        state = torch.load(work / "decoder.pt", map_location="cpu", weights_only=True)
        Decoder(vae).load_state_dict(state["average"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_pool(pixels: np.ndarray, pool: Pool, work: Path, device: torch.device) -> None:
    """Writes `<name>-latents.npy` [2, N, 4, 8, 8] float16: posterior means and standard deviations, unscaled."""
    vae = load_vae(work).to(device)
    stored = np.lib.format.open_memmap(latents_path(pool, work), "w+", np.float16, (2, len(pixels), 4, 8, 8))
    for start in range(0, len(pixels), 500):
        with autocast(device):
            posterior = vae.encode(as_tensor(pixels[start : start + 500]).to(device)).latent_dist
        for kind, values in enumerate((posterior.mean, posterior.std)):
            stored[kind, start : start + 500] = values.float().cpu()
    stored.flush()


def latents_path(pool: Pool, work: Path) -> Path:
    return work / f"{pool.name}-latents.npy"


def write_scaling_factor(pool: Pool, work: Path) -> None:
    """Writes `scaling.json`: what the latents are multiplied by to have unit variance, as SD1.5's 0.18215."""
    means = np.load(latents_path(pool, work), mmap_mode="r")[0, :4_000].astype(np.float32)
    (work / "scaling.json").write_text(json.dumps(round(float(1 / means.std()), 5)), "utf-8")


def scaling_factor(work: Path) -> float:
    return json.loads((work / "scaling.json").read_text("utf-8"))


def _loss(restored: Tensor, batch: Tensor, posterior) -> Tensor:
    """Absolute error of the pictures and of their edges, which keeps eyes and outlines sharp."""
    error = restored - batch
    edges = functional.avg_pool2d(error, 2)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    return error.abs().mean() + error.square().mean() + edges.abs().mean() + KL_WEIGHT * kl


def _sharp_loss(restored: Tensor, batch: Tensor, scenes: list[Scene], network: IdentityNet) -> Tensor:
    """Absolute error of the images and of their differences from pixel to pixel, and what the identity network sees of
    it: in two things' images, of each."""
    error = restored - batch
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3))
    drawn, shown = (focus(pixels, scenes) for pixels in (restored, batch))
    return error.abs().mean() + EDGE_WEIGHT * edges + FEATURE_WEIGHT * _seen(drawn, shown, network)


def _seen(drawn: Tensor, shown: Tensor, network: IdentityNet) -> Tensor:
    """How far the identity network's features are apart, at every stage in units of what is shown."""
    total = drawn.new_zeros(())
    for stage in network.stages:
        drawn, shown = stage(drawn), stage(shown).detach()
        if isinstance(stage, nn.Conv2d | nn.SiLU):
            total = total + (drawn - shown).abs().mean() / shown.std()
    return total
