"""Images that a training run leaves out, to measure its loss on."""

from collections.abc import Hashable, Iterable, Sequence
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


def split_held_out(
    images: Sequence[Item], held_out: int, seed: int, keys: Iterable[Hashable]
) -> tuple[list[Item], list[Item]]:
    """Divide images into those to train on and `held_out` that the seed chooses, both in their order.

    Args:
        keys: one per image, the same for copies of an image, which count as one: none is trained on if it is held out.
            They are not asked for where none is.

    Raises:
        UserError: no image would be left to train on.
    """
    if not held_out:
        return list(images), []
    keys = list(keys)
    distinct = list(dict.fromkeys(keys))
    check_hold_out(len(distinct), held_out)
    order = torch.randperm(len(distinct), generator=named_generator(seed, "held out"))
    chosen = {distinct[index] for index in order[:held_out].tolist()}
    trained = [image for image, key in zip(images, keys, strict=True) if key not in chosen]
    first = dict(zip(reversed(keys), reversed(images), strict=True))
    return trained, [first[key] for key in distinct if key in chosen]
