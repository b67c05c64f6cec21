"""The graph's IMAGE and MASK tensors as Pillow images, and back."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..seqlora_core.data.encoding import Frame
from ..seqlora_core.data.images import alpha_of, from_tensor, to_rgb

LARGEST_RESOLUTION = 1024  # side of the largest training images, in px


def to_pillow(batches: Sequence[Tensor]) -> list[Image.Image]:
    """Every image of IMAGE batches [B, H, W, C] in 0..1, of any sizes, as RGB; one channel is gray, a fourth alpha."""
    frames = [frame for batch in batches for frame in batch]
    return [to_rgb(from_tensor(frame, f"image {number}")) for number, frame in enumerate(frames, 1)]


def to_alphas(batches: Sequence[Tensor]) -> list[Image.Image | None]:
    """The alpha channel of every image of IMAGE batches, as 8-bit gray; None where it has none."""
    frames = [frame for batch in batches for frame in batch]
    return [alpha_of(from_tensor(frame, f"image {number}")) for number, frame in enumerate(frames, 1)]


def to_image(image: Image.Image) -> Tensor:
    """A Pillow image as IMAGE [1, H, W, 3]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).float()[None] / 255


def to_mask(alpha: Image.Image | None) -> Tensor:
    """An alpha channel as MASK [1, H, W], 1 where it is transparent; [1, 64, 64] zeros for None.

    As from the host's own Load Image.
    """
    if alpha is None:
        return torch.zeros(1, 64, 64)
    return 1 - torch.from_numpy(np.array(alpha)).float()[None] / 255


def latent_mask(mask: Tensor, size: tuple[int, int], frame: Frame) -> Tensor:
    """Turn the MASK [H, W] of an image into the mask [1, h, w] of its latents.

    A MASK of another size covers the whole image, as in the host's own nodes.

    Args:
        size: width and height of the image, in px.
        frame: how the image is scaled and cropped.
    """
    covering = from_tensor(mask, "mask").resize(size, Image.Resampling.BILINEAR)
    return frame.weights(frame.fit(covering))
