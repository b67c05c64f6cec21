"""Images that a training run leaves out, to measure its loss on."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from ..errors import UserError
from ..randomness import named_generator
from .listing import counted

Item = TypeVar("Item")


def check_hold_out(images: int, held_out: int) -> None:
    """Raises UserError where no image would be left to train on."""
    if held_out and held_out >= images:
        raise UserError(
            f"There {'is' if images == 1 else 'are'} {counted(images, 'image')}, and hold_out {held_out} leaves none "
            "to train on: lower hold_out, or add images."
        )


def split_held_out(images: Sequence[Item], held_out: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Divide images into those to train on and `held_out` that the seed chooses, both in their order.

    Raises:
        UserError: no image would be left to train on.
    """
    check_hold_out(len(images), held_out)
    if not held_out:
        return list(images), []
    order = torch.randperm(len(images), generator=named_generator(seed, "held out"))
    chosen = set(order[:held_out].tolist())
    return (
        [image for index, image in enumerate(images) if index not in chosen],
        [image for index, image in enumerate(images) if index in chosen],
    )
