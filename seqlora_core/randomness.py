"""Random numbers that can be made again: in a resumed training, in another process, on another platform."""

import hashlib

import torch


def named_generator(*key: int | str) -> torch.Generator:
    """Random numbers that depend on the key alone, in every process and on every platform."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
