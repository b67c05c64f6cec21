"""Training of the identity network, on everything in the catalogue: the concepts too, so that it tells them apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seqlora_core.mini.identity import IdentityNet

from .catalogue import sprites, things
from .pictures import RELATIONS, SIZE, Scene, as_tensor, centres, half_centres, one_thing, two_things
from .runs import Run

BATCH = 96
STEPS = 2_500
SCALE = 20.0
HALVES = 0.3


def train_identity(packages: Path, work: Path, device: torch.device) -> None:
    """Adds `identity.pt` to the working folder; goes on where an earlier run stopped."""
    looks = sprites(packages)
    torch.manual_seed(0)
    network = IdentityNet(len(things())).to(device)
    run = Run(network, work / "identity.pt", STEPS, step_size=3e-3)
    while run.going():
        pixels, labels = _batch(run.rng, looks)
        similarities = network.similarities(network(_degrade(pixels, run).to(device)))
        run.step(functional.cross_entropy(SCALE * similarities, labels.to(device)))
    run.finish()


def load_trained_identity(work: Path) -> IdentityNet:
    network = IdentityNet(len(things()))
    network.load_state_dict(torch.load(work / "identity.pt", map_location="cpu", weights_only=True)["average"])
    return network.eval().requires_grad_(False)


def halves(pixels: Tensor, relation: str) -> tuple[Tensor, Tensor]:
    """The surroundings of the first and of the second thing in pictures [N, 3, 32, 32], as pictures of their own."""
    first, second = half_centres(relation)
    return _crop(pixels, first), _crop(pixels, second)


def focus(pixels: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Each thing's surroundings as an image of its own, in the order of the scenes and their things."""
    parts = []
    for picture, scene in zip(pixels.split(1), scenes, strict=True):
        parts += [_crop(picture, centre) for centre in centres(scene)] or [picture]
    return torch.cat(parts)


def _crop(pixels: Tensor, centre: tuple[int, int]) -> Tensor:
    reach = SIZE // 4
    x, y = centre
    part = pixels[:, :, y - reach : y + reach, x - reach : x + reach]
    return functional.interpolate(part, size=(SIZE, SIZE), mode="bilinear", align_corners=False)


def _batch(rng: np.random.Generator, looks: np.ndarray) -> tuple[Tensor, Tensor]:
    pictures, labels = [], rng.integers(len(looks), size=BATCH)
    for label in labels:
        if rng.random() < HALVES:
            relation = str(rng.choice(RELATIONS))
            pixels, _ = two_things(rng, looks, int(label), int(rng.integers(len(looks))), relation)
            pictures.append(halves(as_tensor(pixels[None]), relation)[0])
        else:
            pictures.append(as_tensor(one_thing(rng, looks, int(label))[0][None]))
    return torch.cat(pictures), torch.from_numpy(labels).long()


def _degrade(pixels: Tensor, run: Run) -> Tensor:
    """Blur, noise and a shift of colour, as in generated pictures."""
    small = int(run.rng.integers(14, 33))
    blurred = functional.interpolate(pixels, size=(small, small), mode="bilinear", align_corners=False, antialias=True)
    blurred = functional.interpolate(blurred, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    count = len(pixels)
    gain = 1 + 0.1 * torch.randn(count, 1, 1, 1, generator=run.noise)
    shift = 0.08 * torch.randn(count, 3, 1, 1, generator=run.noise)
    noise = 0.06 * torch.rand(count, 1, 1, 1, generator=run.noise) * torch.randn(pixels.shape, generator=run.noise)
    return blurred * gain + shift + noise
