"""Every fingerprint: of weights, tensors, images, training data, facts and bytes.

Fingerprints are stored in banks, checkpoints and evaluation folders, so their values must never change.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from .errors import UserError

_ROW_STRIDE = 64  # a finetune changes every row, so a sample of the rows is enough
_SHORT = 32  # hexadecimal digits of the fingerprints that people see


def sha256(content: bytes) -> str:
    """Hash bytes: 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest(facts: list) -> str:
    """Hash JSON-ready values; anything else counts as its text."""
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode())[:_SHORT]


def fingerprint(weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> str:
    """Hash a sample of the rows of named weights.

    The fingerprint of a base's attention weights [m, n], by canonical layer name, is the base's identity.

    Args:
        dtype: the precision to compare in; with half precision the float32 and the float16 file of one model agree.

    Raises:
        UserError: a sampled weight is NaN or infinite.
    """
    hashed = hashlib.sha256()
    for name in sorted(weights):
        sample = torch.atleast_1d(weights[name].detach())[::_ROW_STRIDE].cpu()
        if sample.is_floating_point() and not sample.float().isfinite().all():
            raise UserError(f"The weights of {name} are not finite: use another base model.")
        rows = sample.to(dtype).clone(memory_format=torch.contiguous_format)  # a stride other than 1 cannot be viewed
        hashed.update(f"{name}{tuple(weights[name].shape)}".encode())
        hashed.update(rows.view(torch.int16).numpy().tobytes())  # numpy has no bfloat16
    return hashed.hexdigest()[:_SHORT]


def tensors_fingerprint(tensors: Iterable[Tensor], remark: str = "") -> str:
    """Hash the shapes and float32 values of tensors in their order, followed by a remark."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(str(tuple(tensor.shape)).encode())
        hashed.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    hashed.update(remark.encode())
    return hashed.hexdigest()


def images_fingerprint(images: Iterable[Image.Image]) -> str:
    """Hash the modes, sizes and pixels of images in their order."""
    hashed = hashlib.sha256()
    for image in images:
        hashed.update(f"{image.mode}{image.size}".encode())
        hashed.update(image.tobytes())
    return hashed.hexdigest()


def data_fingerprint(encoders: str, *groups: Sequence[tuple]) -> str:
    """Hash training data before it is encoded; banks store it with every concept.

    Args:
        encoders: the fingerprint of the VAE and the text encoder.
        groups: the images of the concept and those of its class: (image, prompts, repeats), and its mask if it has one.
    """
    hashed = hashlib.sha256(encoders.encode())
    for group in groups:
        hashed.update(f"{len(group)} images".encode())
        for image, prompts, repeats, *masks in group:
            hashed.update(repr((image.size, prompts)).encode())
            hashed.update(image.tobytes())
            if repeats != 1:  # without, hashes are those of versions that knew no repeats
                hashed.update(f"{repeats} repeats".encode())
            for mask in masks:
                hashed.update(b"mask" + mask.tobytes())
    return hashed.hexdigest()
