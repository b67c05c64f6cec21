"""Telling base models apart by their weights, and other things by what decides them."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

_ROW_STRIDE = 64  # every finetune moves every row, so a few of them tell


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of weights by name; of a base's attention weights [m, n], by canonical layer name, it is its identity.

    Taken in float16, so that the float32 and the float16 file of one model agree.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        rows = torch.atleast_1d(weights[name].detach())[::_ROW_STRIDE].to("cpu", torch.float16)
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
        digest.update(rows.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def digest(facts: list) -> str:
    """A hash of what JSON can hold; of anything else in it counts the text."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
