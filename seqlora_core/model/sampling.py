"""Latents from noise in a few deterministic steps, through whatever predicts noise."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor, nn

from .activations import LayerInputs, capture_inputs
from .adapters import Adapter, attach
from .base import Base
from .sd15 import find_layers


def ddim(
    predict_noise: Callable[[Tensor, Tensor], Tensor], alphas_cumprod: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """Deterministic DDIM (Song et al., ICLR 2021, eq. 12 with eta = 0).

    Args:
        predict_noise: (latents [b, 4, h, w], timesteps [b]) -> epsilon [b, 4, h, w].
        alphas_cumprod: [T], the schedule's signal power at each timestep.
        noise: [b, 4, h, w], where it starts.
        steps: forward passes.

    Returns:
        [b, 4, h, w] on the noise's device.
    """
    x, clean, schedule = noise, noise, alphas_cumprod.cpu()
    timesteps = torch.linspace(len(schedule) - 1, 0, steps + 1).long()
    for now, following in pairwise(timesteps):
        epsilon = predict_noise(x, now.expand(len(x)).to(x.device))
        clean = (x - (1 - schedule[now]).sqrt() * epsilon) / schedule[now].sqrt()
        x = schedule[following].sqrt() * clean + (1 - schedule[following]).sqrt() * epsilon
    return clean


def generate(
    base: Base,
    prompt: str,
    adapters: Mapping[str, Adapter] | None = None,
    *,
    seed: int = 0,
    steps: int = 30,
    size: int = 512,
    guidance: float = 7.5,
    negative_prompt: str = "",
    count: int = 1,
) -> list[Image.Image]:
    """Sample `count` pictures through the base's own diffusers pipeline; the n-th uses seed + n.

    Args:
        adapters: a composed sum (see `composition.compose`), or None for the plain base.

    Raises:
        UserError: the size does not fit the base.
    """
    base.check_resolution(size)
    settings = {"negative_prompt": negative_prompt, "guidance_scale": guidance, "num_images_per_prompt": count}
    seeds = range(seed, seed + count)
    return _run_pipeline(base, prompt, adapters, seeds, num_inference_steps=steps, height=size, width=size, **settings)


def inputs_while_sampling(
    base: Base,
    prompt: str,
    adapters: Mapping[str, Adapter] | None = None,
    *,
    layers: Collection[str] | None = None,
    seed: int = 0,
    steps: int = 20,
    rows: int = 0,
) -> dict[str, LayerInputs]:
    """What layers read while the base samples one picture of its native size, without guidance.

    Args:
        layers: by canonical name; None stands for all that can be adapted.
        rows: inputs to keep of each layer and pass (see `activations.capture_inputs`).
    """
    size, found = base.native_size, find_layers(base.pipeline.unet)
    settings = {"guidance_scale": 1.0, "num_inference_steps": steps, "height": size, "width": size}
    return capture_inputs(
        found if layers is None else {name: layer for name, layer in found.items() if name in layers},
        lambda: _run_pipeline(base, prompt, adapters, [seed], output_type="latent", **settings),
        rows,
    )


@torch.no_grad()
def _run_pipeline(base: Base, prompt: str, adapters: Mapping[str, Adapter] | None, seeds, **settings):
    layers = find_layers(base.pipeline.unet)
    on_device = {name: adapter.to(base.device) for name, adapter in (adapters or {}).items()}
    base.pipeline.set_progress_bar_config(disable=True)
    with attach(layers, on_device), _autocast(base.pipeline.unet, base.device):
        # Noise from the CPU, so that a seed means the same picture on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return base.pipeline(prompt, generator=generators, **settings).images


@contextmanager
def _autocast(unet: nn.Module, device: torch.device) -> Iterator[None]:
    """While the block lasts, a half-precision UNet takes and gives float32, in which all that is around it computes.

    Several VAEs that people use overflow in float16 and draw black pictures.
    """
    if unet.dtype == torch.float32:
        yield
        return
    unet.forward = torch.autocast(device.type, unet.dtype)(unet.forward)
    # Some samplers give latents in the precision of the noise, and so would hand them to the VAE.
    last = unet.conv_out.register_forward_hook(lambda layer, inputs, noise: noise.float())
    try:
        yield
    finally:
        last.remove()
        del unet.forward  # the class's own shows again
