"""The host's CLIP and VAE: checking, identifying, and encoding with them."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as model_management
import torch
from PIL import Image
from torch import Tensor

from ...seqlora_core.data.dataset import Example
from ...seqlora_core.data.images import fit
from ...seqlora_core.errors import UserError
from ...seqlora_core.hashing import fingerprint
from ...seqlora_core.model.sd15 import SD15
from ..image_tensors import latent_mask, to_image
from . import CLIP, VAE, ModelPatcher
from .model import as_loaded

_NOT_USED = ("decoder", "post_quant", "text_projection", "logit_scale")  # weights that encoding does not use


def check_encoders(clip: CLIP | None, vae: VAE | None) -> None:
    """Raises UserError where the CLIP or the VAE is missing, or the VAE makes other latents."""
    if clip is None:
        raise UserError("No CLIP is on the input clip (some files have none): connect the one of an SD1.5 checkpoint.")
    if getattr(vae, "first_stage_model", None) is None:
        raise UserError("No VAE is on the input vae (some files have none): connect the one of an SD1.5 checkpoint.")
    channels = getattr(vae, "latent_channels", SD15.latent_channels)
    if channels != SD15.latent_channels:
        raise UserError(
            f"The VAE on the input vae makes latents of {channels} channels, but {SD15.name} has "
            f"{SD15.latent_channels}: connect an SD1.5 VAE."
        )


def check_texts(clip: CLIP, prompt: str) -> None:
    """Raises UserError where CLIP's embedding of a prompt has a width that the UNet does not take."""
    width = _encode_prompt(clip, prompt).shape[-1]
    if width != SD15.text_width:
        raise UserError(
            f"The CLIP on the input clip makes texts of width {width}, but {SD15.name} takes {SD15.text_width}: "
            "connect an SD1.5 CLIP."
        )


@torch.inference_mode()
def identify_encoders(clip: CLIP, vae: VAE) -> str:
    """A hash of the unpatched weights that encode prompts and images."""
    weights = {f"clip.{name}": weight for name, weight in as_loaded(clip.patcher).items()}
    weights |= {f"vae.{name}": weight for name, weight in vae.first_stage_model.named_parameters()}
    used = {name: weight for name, weight in weights.items() if not any(part in name for part in _NOT_USED)}
    return fingerprint(used, torch.bfloat16)  # the least precise type in which machines hold a VAE


def latent_masks(masks: list[Tensor], images: list[Image.Image], resolution: int) -> list[Tensor]:
    """Turn MASKs [H, W] into the masks [1, h, w] of their images' latents; no masks stay no masks.

    Args:
        resolution: side of the square training images, in px.

    Raises:
        UserError: the number of masks differs from that of the images, or nothing of an image would count.
    """
    if not masks:
        return []
    if len(masks) != len(images):
        raise UserError(f"There are {len(masks)} masks for {len(images)} images: connect one mask per image, or none.")
    made = [latent_mask(m, i.size, resolution, SD15.vae_scale_factor) for m, i in zip(masks, images, strict=True)]
    for number, mask in enumerate(made, 1):
        if not (mask > 0).any():
            raise UserError(
                f"Mask {number} of {len(made)} is empty in the middle square of its image, so nothing of that image "
                "would count: paint the subject into the mask, or disconnect the masks."
            )
    return made


def encode(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    images: list[Image.Image],
    masks: list[Tensor],
    prompts: list[tuple[str, ...]],
    resolution: int,
) -> list[Example]:
    """Encode images with the host's VAE and the prompts of each with its CLIP; checks for Cancel before each.

    Args:
        masks: per image, from `latent_masks`; may be empty.
        resolution: side of the square training images, in px.
    """
    texts = {prompt: _encode_prompt(clip, prompt) for prompt in dict.fromkeys(p for own in prompts for p in own)}
    examples = []
    for index, (image, own) in enumerate(zip(images, prompts, strict=True)):
        with _as_in_sampling():
            encoded = vae.encode(to_image(fit(image, resolution, True, SD15.vae_scale_factor)))
            latents = model.model.process_latent_in(encoded)[0].float().cpu()
        prompted = torch.stack([texts[prompt] for prompt in own])
        examples.append(Example(latents.clone(), prompted, mask=masks[index] if masks else None))
    return examples


def encode_prompts(clip: CLIP, prompts: list[str]) -> Tensor | None:
    """Encode prompts with the host's CLIP, as [P, 77, 768]; None where there are none."""
    return torch.stack([_encode_prompt(clip, prompt) for prompt in prompts]) if prompts else None


def count_tokens(clip: CLIP, prompt: str) -> int:
    """Count a prompt's tokens, the start and end tokens included."""
    windows = next(iter(clip.tokenize(prompt).values()))
    return 2 + sum(_place_of_end(window) - 2 for window in windows)


def _place_of_end(window: list[tuple]) -> int:
    """The place of a window's first end token, counted from 1; more of them pad the window."""
    tokens = [entry[0] for entry in window]  # numbers, or vectors of a textual inversion
    return next(place for place, token in enumerate(tokens, 1) if isinstance(token, int) and token == tokens[-1])


def _encode_prompt(clip: CLIP, prompt: str) -> Tensor:
    with _as_in_sampling():
        windows = clip.encode_from_tokens(clip.tokenize(prompt))[0].float().cpu()  # [77 per window, 768]
    return windows[: SD15.prompt_tokens].clone()  # the first window, as on the command line


@contextmanager
def _as_in_sampling() -> Iterator[None]:
    """Inference mode and a check for Cancel, as when the host samples; clone the results to train on them."""
    model_management.throw_exception_if_processing_interrupted()
    with torch.inference_mode():
        yield


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generators, from which the host's VAE draws, and restore their state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
