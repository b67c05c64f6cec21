"""The host's CLIP and VAE: what they must be, what tells them apart, and encoding with them."""

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
from ..pictures import latent_mask, to_image
from .model import as_loaded

_NOT_USED = ("decoder", "post_quant", "text_projection", "logit_scale")  # weights that encoding leaves aside


def check_encoders(clip, vae) -> None:
    """Raises UserError where there is no CLIP, no VAE, or one of another kind of latents."""
    if clip is None:
        raise UserError("No CLIP is on the input clip (some files have none): connect that of an SD1.5 checkpoint.")
    if getattr(vae, "first_stage_model", None) is None:
        raise UserError("No VAE is on the input vae (some files have none): connect that of an SD1.5 checkpoint.")
    channels = getattr(vae, "latent_channels", SD15.latent_channels)
    if channels != SD15.latent_channels:
        raise UserError(
            f"The VAE on the input vae makes latents of {channels} channels, and {SD15.name} has "
            f"{SD15.latent_channels}: connect an SD1.5 VAE."
        )


def check_texts(clip, prompt: str) -> None:
    """Raises UserError where the UNet cannot read what CLIP makes of a prompt."""
    width = _encode_prompt(clip, prompt).shape[-1]
    if width != SD15.text_width:
        raise UserError(
            f"The CLIP on the input clip makes texts of width {width}, and {SD15.name} reads {SD15.text_width}: "
            "connect an SD1.5 CLIP."
        )


@torch.inference_mode()
def identify_encoders(clip, vae) -> str:
    """A hash of the weights, without any patch, that encode prompts and pictures."""
    weights = {f"clip.{name}": weight for name, weight in as_loaded(clip.patcher).items()}
    weights |= {f"vae.{name}": weight for name, weight in vae.first_stage_model.named_parameters()}
    used = {name: weight for name, weight in weights.items() if not any(part in name for part in _NOT_USED)}
    return fingerprint(used, torch.bfloat16)  # the least precise of those in which machines hold a VAE


def latent_masks(masks: list[Tensor], pictures: list[Image.Image], resolution: int) -> list[Tensor]:
    """MASKs [H, W] as the masks [1, h, w] of their pictures' latents; none for none.

    Raises:
        UserError: there is not one for each picture, or nothing of a picture would count.
    """
    if not masks:
        return []
    if len(masks) != len(pictures):
        raise UserError(f"There are {len(masks)} masks for {len(pictures)} pictures: give one for each, or none.")
    made = [latent_mask(m, p.size, resolution, SD15.vae_scale_factor) for m, p in zip(masks, pictures, strict=True)]
    for number, mask in enumerate(made, 1):
        if not (mask > 0).any():
            raise UserError(
                f"Mask {number} of {len(made)} is empty in the middle square of its picture, so nothing of that would "
                "count: paint the subject into it, or connect no masks."
            )
    return made


def encode(
    model, clip, vae, pictures: list[Image.Image], masks: list[Tensor], prompts: list[tuple[str, ...]], resolution: int
) -> list[Example]:
    """Pictures and the prompts of each through the host's VAE and CLIP, with their masks of latents; hears Cancel."""
    texts = {prompt: _encode_prompt(clip, prompt) for prompt in dict.fromkeys(p for own in prompts for p in own)}
    examples = []
    for index, (picture, own) in enumerate(zip(pictures, prompts, strict=True)):
        with _as_in_sampling():
            encoded = vae.encode(to_image(fit(picture, resolution, True, SD15.vae_scale_factor)))
            latents = model.model.process_latent_in(encoded)[0].float().cpu()
        prompted = torch.stack([texts[prompt] for prompt in own])
        examples.append(Example(latents.clone(), prompted, mask=masks[index] if masks else None))
    return examples


def encode_prompts(clip, prompts: list[str]) -> Tensor | None:
    """Embeddings [P, 77, 768] of prompts through the host's CLIP; None for none."""
    return torch.stack([_encode_prompt(clip, prompt) for prompt in prompts]) if prompts else None


def count_tokens(clip, prompt: str) -> int:
    """How many tokens a prompt has, with those that begin and end it."""
    (window, *_), *_ = clip.tokenize(prompt).values()
    tokens = [entry[0] for entry in window]  # numbers, or vectors of a textual inversion
    end = tokens[-1]  # which fills the window up, too
    return next(place for place, token in enumerate(tokens, 1) if isinstance(token, int) and token == end)


def _encode_prompt(clip, prompt: str) -> Tensor:
    with _as_in_sampling():
        windows = clip.encode_from_tokens(clip.tokenize(prompt))[0].float().cpu()  # [77 a window, 768]
    return windows[: SD15.prompt_tokens].clone()  # the host concatenates windows; the command line has one


@contextmanager
def _as_in_sampling() -> Iterator[None]:
    """How the host uses its models otherwise, Cancel included; what comes out of it is to be cloned for a training."""
    model_management.throw_exception_if_processing_interrupted()
    with torch.inference_mode():
        yield


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """The host's VAE draws from torch's global generators: give them a seed, and put back what they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
