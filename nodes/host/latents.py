"""Images, encoded by the host's VAE, and kept for the next node."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management as model_management
import torch
from PIL import Image
from torch import Tensor

from ...seqlora_core.hashing import fingerprint, images_fingerprint
from ...seqlora_core.randomness import named_generator
from ..cache_keys import values_fingerprint
from ..image_tensors import to_image
from . import VAE, ModelPatcher
from .kept import KEPT, used_to_encode


class ImageEncoder:
    """The latents that a VAE makes of images for the UNet of MODEL.

    They are found again by a hash of the VAE's weights, the seed and the images, as embeddings are (see `TextEncoder`).
    """

    def __init__(self, model: ModelPatcher, vae: VAE) -> None:
        self._model, self._vae, self._identity = model, vae, _identify(vae)

    def missing(self, images: Sequence[Image.Image], seed: int) -> list[Image.Image]:
        """The images that are yet to be encoded, without repeats."""
        by_key = dict(zip(self._keys(images, seed), images, strict=True))
        return [image for key, image in by_key.items() if key not in KEPT]

    def encode(self, images: Sequence[Image.Image], seed: int, reached: Callable[[int], None]) -> list[Tensor]:
        """Encode images as latents [4, h, w] float32 on the CPU.

        Args:
            seed: of the sample from the posterior, which depends on the image, too, but on no other one.
            reached: called before each image that is missing with the number of those that are encoded.
        """
        keys = self._keys(images, seed)
        found = {key: KEPT.get(key) for key in keys}
        missing = {key: image for key, image in zip(keys, images, strict=True) if found[key] is None}
        for done, (key, image) in enumerate(missing.items()):
            reached(done)
            encoded = self._encode(image, seed)
            found[key] = KEPT.put(key, encoded) if self._identity else encoded
        return [self._model.model.process_latent_in(found[key]).clone() for key in keys]

    def _keys(self, images: Sequence[Image.Image], seed: int) -> list[str]:
        return [values_fingerprint([self._identity, seed, images_fingerprint([image])]) for image in images]

    def _encode(self, image: Image.Image, seed: int) -> Tensor:
        model_management.throw_exception_if_processing_interrupted()
        own_seed = named_generator(seed, images_fingerprint([image])).initial_seed()
        with torch.inference_mode(), _seeded_rng(own_seed):
            encoded = self._vae.encode(to_image(image))[0]
        with torch.inference_mode(False):
            return encoded.to("cpu", torch.float32, copy=True)


def _identify(vae: VAE) -> str:
    """A hash of the weights that decide a VAE's latents; empty if another node has replaced its `encode`."""
    if getattr(vae.encode, "__func__", None) is not VAE.encode:
        return ""
    with torch.inference_mode():
        return fingerprint(used_to_encode(dict(vae.first_stage_model.named_parameters())), torch.float32)


@contextmanager
def _seeded_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generators, from which the host's VAE draws, and restore their state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
