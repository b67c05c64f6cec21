"""The graph's IMAGE and MASK tensors as Pillow images, and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..seqlora_core.data.images import fit, from_tensor, to_rgb

LARGEST_RESOLUTION = 1024  # side of the squares that a training can use


def to_pictures(batches: list[Tensor]) -> list[Image.Image]:
    """Every image of IMAGE batches [B, H, W, C] in 0..1, of any sizes, as RGB; one channel is gray, a fourth alpha."""
    frames = [frame for batch in batches for frame in batch]
    return [to_rgb(from_tensor(frame, f"image {number}")) for number, frame in enumerate(frames, 1)]


def to_image(picture: Image.Image) -> Tensor:
    """A Pillow image as IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255


def latent_mask(mask: Tensor, size: tuple[int, int], resolution: int, scale: int) -> Tensor:
    """A MASK [H, W] of a picture of that size as the mask [1, h, w] of its latents, which are `scale` times smaller.

    A MASK of another size covers the whole picture, as the host's own nodes have it.
    """
    covering = from_tensor(mask, "mask").resize(size, Image.Resampling.BILINEAR)
    square = fit(covering, resolution, True, scale)
    side = resolution // scale
    return torch.from_numpy(np.array(square.resize((side, side), Image.Resampling.BOX))).float()[None] / 255
