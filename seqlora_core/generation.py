"""Pictures from a base with composed concepts."""

from collections.abc import Mapping

import torch
from PIL import Image

from .bases import Base
from .layers import Adapter, attached, find_layers


@torch.no_grad()
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
    layers = find_layers(base.pipeline.unet)
    on_device = {name: Adapter(A.to(base.device), B.to(base.device)) for name, (A, B) in (adapters or {}).items()}
    unet_dtype = base.pipeline.unet.dtype
    base.pipeline.set_progress_bar_config(disable=True)
    with attached(layers, on_device), torch.autocast(base.device.type, unet_dtype, enabled=unet_dtype != torch.float32):
        result = base.pipeline(
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            num_images_per_prompt=count,
            # Noise from the CPU, so that a seed means the same picture on every device.
            generator=[torch.Generator().manual_seed(seed + index) for index in range(count)],
        )
    return result.images
