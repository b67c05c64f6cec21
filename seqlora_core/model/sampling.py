"""Sample latents and images: deterministic DDIM over any noise predictor, and the base's own diffusers pipeline."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..data.words import NO_WORDS, Words
from ..errors import UserError
from .activations import LayerInputs, capture_inputs
from .adapters import Adapter, Scale, attach, unscaled
from .base import Base
from .sd15 import SD15, find_layers


@dataclass(frozen=True)
class SamplingSettings:
    """How images of a prompt are sampled.

    Attributes:
        steps: sampler steps per image.
        size: side of the square images, in px.
        guidance: classifier-free guidance scale.
        seed: of the first image; the n-th image uses seed + n.
        negative_prompt: what guidance steers away from.
        count: number of images, sampled in one batch.
    """

    steps: int = 30
    size: int = SD15.native_size
    guidance: float = 7.5
    seed: int = 0
    negative_prompt: str = ""
    count: int = 1


def check_sampling_steps(steps: int, timesteps: int) -> None:
    """Raise UserError if a sampler is to take more steps than the model's schedule has timesteps."""
    if steps > timesteps:
        raise UserError(f"A sampler takes at most {timesteps} steps on this base: lower the number of steps.")


def ddim(
    predict_noise: Callable[[Tensor, Tensor], Tensor], alphas_cumprod: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """Sample latents with deterministic DDIM (Song et al., ICLR 2021, eq. 12 with eta = 0).

    Args:
        predict_noise: (latents [b, c, h, w], timesteps [b]) -> epsilon [b, c, h, w].
        alphas_cumprod: [T], the schedule's signal power at each timestep.
        noise: [b, c, h, w], the starting point.
        steps: forward passes.

    Returns:
        [b, c, h, w] on the noise's device.

    Raises:
        UserError: the steps are more than T.
    """
    check_sampling_steps(steps, len(alphas_cumprod))
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
    settings: SamplingSettings = SamplingSettings(),
    words: Words = NO_WORDS,
    scale: Scale = unscaled,
) -> list[Image.Image]:
    """Sample images of a prompt, which may weight parts like "(sksdog:1.2)", with the base's own diffusers pipeline.

    Args:
        adapters: a composed sum (see `composition.concatenation.compose`), or None for the plain base.
        words: the vectors of learned words, which the prompts may name.
        scale: scales the adapters token by token (see `adapters.attach`).

    Raises:
        UserError: the size does not fit the base, the steps are too many, or the image is not finite.
    """
    base.check_resolution(settings.size)
    check_sampling_steps(settings.steps, base.pipeline.scheduler.config.num_train_timesteps)
    images = _run_pipeline(
        base,
        (prompt, settings.negative_prompt),
        words,
        adapters,
        range(settings.seed, settings.seed + settings.count),
        scale,
        num_inference_steps=settings.steps,
        height=settings.size,
        width=settings.size,
        guidance_scale=settings.guidance,
        num_images_per_prompt=settings.count,
        output_type="np",
    )
    _check_finite(torch.from_numpy(images), base, adapters)  # Pillow would get black images
    return base.pipeline.image_processor.numpy_to_pil(images)


def inputs_while_sampling(
    base: Base,
    prompt: str,
    adapters: Mapping[str, Adapter] | None = None,
    *,
    layers: Collection[str] | None = None,
    seed: int = 0,
    steps: int = 20,
    samples_per_pass: int = 0,
    words: Words = NO_WORDS,
) -> dict[str, LayerInputs]:
    """Capture what layers receive while the base samples one image of its native size, without guidance.

    Args:
        adapters: as for `generate`.
        layers: canonical names; None stands for all adaptable layers.
        seed: of the image.
        steps: sampler steps, one forward pass each.
        words: as for `generate`.
        samples_per_pass: inputs to keep per layer and pass (see `activations.capture_inputs`).
    """
    size, found = base.native_size, find_layers(base.pipeline.unet)
    settings = {"guidance_scale": 1.0, "num_inference_steps": steps, "height": size, "width": size}
    return capture_inputs(
        found if layers is None else {name: layer for name, layer in found.items() if name in layers},
        lambda: _run_pipeline(base, (prompt, ""), words, adapters, [seed], output_type="latent", **settings),
        samples_per_pass,
    )


@torch.no_grad()
def _run_pipeline(
    base: Base,
    prompts: tuple[str, str],
    words: Words,
    adapters: Mapping[str, Adapter] | None,
    seeds: Sequence[int],
    scale: Scale = unscaled,
    **settings,
) -> Any:
    """The pipeline's images in the form that `output_type` asks for.

    Args:
        prompts: what the images show, and what guidance steers away from.
    """

    def check(pipeline: Any, step: int, timestep: Tensor, values: dict) -> dict:
        _check_finite(values["latents"], base, adapters)
        return values

    layers = find_layers(base.pipeline.unet)
    on_device = {name: adapter.to(base.device) for name, adapter in (adapters or {}).items()}
    base.pipeline.set_progress_bar_config(disable=True)
    with attach(layers, on_device, scale=scale), _autocast(base.pipeline.unet, base.device):
        # The noise comes from the CPU, so that a seed gives the same image on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        prompt, negative = (base.text_encoder.encode_weighted(text, words)[None].to(base.device) for text in prompts)
        return base.pipeline(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            generator=generators,
            callback_on_step_end=check,
            **settings,
        ).images


def _check_finite(values: Tensor, base: Base, adapters: Mapping[str, Adapter] | None) -> None:
    """Raise UserError, with what may help, where latents or pixels are NaN or infinite."""
    if values.isfinite().all():
        return
    dtype = str(base.pipeline.unet.dtype).removeprefix("torch.")
    advice = ["use dtype float32"] if dtype != "float32" else []
    advice += ["lower the strengths of the concepts"] if adapters else []
    advice += ["lower the guidance", "use another base model"]
    raise UserError(f"The image is not finite in {dtype}: {', or '.join(advice)}.")


@contextmanager
def _autocast(unet: nn.Module, device: torch.device) -> Iterator[None]:
    """While the block lasts, let a half-precision UNet receive and output float32, in which everything else computes.

    Several popular VAEs overflow in float16 and decode to black images.
    """
    if unet.dtype == torch.float32:
        yield
        return
    unet.forward = torch.autocast(device.type, unet.dtype)(unet.forward)
    # Some samplers return latents in the precision of the noise, and would pass them to the VAE like that.
    last = unet.conv_out.register_forward_hook(lambda layer, inputs, noise: noise.float())
    try:
        yield
    finally:
        last.remove()
        del unet.forward  # restores the method of the class
