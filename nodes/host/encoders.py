"""The host's CLIP and VAE together: checking, identifying, and encoding with them."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...seqlora_core.data.dataset import Example
from ...seqlora_core.data.encoding import Frame
from ...seqlora_core.data.listing import counted
from ...seqlora_core.data.words import NO_WORDS, Words
from ...seqlora_core.errors import UserError
from ...seqlora_core.hashing import fingerprint
from ...seqlora_core.model.sd15 import SD15
from ...seqlora_core.monitor import Monitor, Stage
from ...seqlora_core.training.config import ResolvedConfig
from ..image_tensors import latent_mask
from . import CLIP, VAE, ModelPatcher
from .kept import used_to_encode
from .latents import ImageEncoder
from .model import as_loaded
from .texts import TextEncoder

_MULTIPLE = 64  # px; every level of SD1.5's UNet halves the sides evenly


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


@torch.inference_mode()
def identify_encoders(clip: CLIP, vae: VAE) -> str:
    """A hash of the unpatched weights that encode prompts and images."""
    weights = {f"clip.{name}": weight for name, weight in as_loaded(clip.patcher).items()}
    weights |= {f"vae.{name}": weight for name, weight in vae.first_stage_model.named_parameters()}
    return fingerprint(used_to_encode(weights), torch.bfloat16)  # the least precise type in which machines hold a VAE


def latent_masks(
    masks: list[Tensor], alphas: list[Image.Image | None], images: list[Image.Image], frame: Frame
) -> list[Tensor | None]:
    """Turn MASKs [H, W] and alpha channels into the masks [1, h, w] of their images' latents.

    Args:
        masks: one per image, or none.
        alphas: as gray images, one per image; where there is a MASK, too, a pixel counts as both say.
        frame: how the images are scaled and cropped.

    Raises:
        UserError: the number of masks differs from that of the images, or nothing of an image would count.
    """
    if masks and len(masks) != len(images):
        raise UserError(f"There are {len(masks)} masks for {len(images)} images: connect one mask per image, or none.")
    made: list[Tensor | None] = []
    problem = "is empty" if frame.bucket_multiple else "is empty in the middle square of its image"
    for number, (image, alpha) in enumerate(zip(images, alphas, strict=True), 1):
        mask = latent_mask(masks[number - 1], image.size, frame) if masks else None
        if mask is not None and not (mask > 0).any():
            raise UserError(
                f"Mask {number} of {len(masks)} {problem}, so nothing of that image "
                "would count: paint the subject into the mask, or disconnect the masks."
            )
        if alpha is not None:
            weights = frame.weights(frame.fit(alpha))
            mask = weights if mask is None else weights * mask
            if not (mask > 0).any():
                raise UserError(
                    f"Image {number} of {len(images)} is transparent, or its mask is black where it is not, so nothing "
                    "of it would count: leave the image out, or switch alpha_masks off."
                )
        made.append(mask)
    return made


def frame_of(config: ResolvedConfig) -> Frame:
    """How a training run scales and crops its images."""
    return Frame(config.resolution, SD15.vae_scale_factor, bucket_multiple=_MULTIPLE if config.buckets else 0)


class Encoders:
    """The graph's CLIP and VAE, as a training run on MODEL uses them.

    Args:
        words: learned words that prompts may name, besides those that CLIP knows.
    """

    def __init__(self, model: ModelPatcher, clip: CLIP, vae: VAE, words: Words = NO_WORDS) -> None:
        self._texts, self._images = TextEncoder(clip).knowing(words), ImageEncoder(model, vae)

    def encode(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Tensor | None],
        prompts: Sequence[Sequence[str]],
        protected: Sequence[str],
        config: ResolvedConfig,
        monitor: Monitor,
    ) -> tuple[list[Example], Tensor | None]:
        """Encode what no node has encoded yet; the monitor receives the progress, and is asked whether to stop.

        Args:
            masks: per image, from `latent_masks`.
            prompts: of each image.
            protected: further prompts.

        Returns:
            An example per image, and the embeddings [P, 77, 768] of the further prompts; None where there are none.
        """
        squares = [frame_of(config).fit(image) for image in images]
        every = list(dict.fromkeys([*(prompt for own in prompts for prompt in own), *protected]))
        new_prompts = len(self._texts.missing(every))
        new_images = len(self._images.missing(squares, config.seed))
        counts = {"image": new_images, "prompt": new_prompts}
        text = " and ".join(counted(number, noun) for noun, number in counts.items() if number)
        stage = Stage(monitor, f"encoding {text}", new_images + new_prompts)
        embeddings = dict(zip(every, self._texts.encode(every, stage.reached), strict=True))
        latents = self._images.encode(squares, config.seed, lambda done: stage.reached(new_prompts + done))
        examples = [
            Example(latent, torch.stack([embeddings[prompt] for prompt in own]), mask=mask, texts=tuple(own))
            for latent, own, mask in zip(latents, prompts, masks, strict=True)
        ]
        return examples, torch.stack([embeddings[prompt] for prompt in protected]) if protected else None
