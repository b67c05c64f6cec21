"""The mini world's identity metric: what DINO is for photographs, a small network is for its images."""

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import FOLDER

WIDTHS = (48, 96, 128)
EMBEDDING = 128


class IdentityNet(nn.Module):
    """Tells the mini world's things apart, whatever their place, size and background.

    Args:
        things: how many it knows; those that the base has learned come first, the concepts after them.
    """

    def __init__(self, things: int):
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 5, stride=2, padding=2)]
        for narrow, wide in pairwise(WIDTHS):
            stages += [_Block(narrow), nn.SiLU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1)]
        self.stages = nn.Sequential(*stages, _Block(WIDTHS[-1]), nn.SiLU())
        self.embed = nn.Linear(2 * WIDTHS[-1], EMBEDDING)
        self.centres = nn.Parameter(torch.randn(things, EMBEDDING))

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors [N, 128] of images [N, 3, 32, 32] in -1..1."""
        features = self.stages(pixels)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)
        return functional.normalize(self.embed(pooled), dim=1)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Cosine similarities [N, things] of embeddings to each thing that the network knows."""
        return embeddings @ functional.normalize(self.centres, dim=1).T


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width)
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.inner(features)


@cache
def load_identity() -> IdentityNet:
    """The shipped network, frozen, float32, on the CPU."""
    from safetensors.torch import load_file

    weights = load_file(FOLDER / "identity.safetensors")
    network = IdentityNet(len(weights["centres"]))
    network.load_state_dict(weights)
    return network.float().eval().requires_grad_(False)


@torch.no_grad()
def identity_similarity(pixels: Tensor, references: Tensor) -> Tensor:
    """Measure how much images show what the references show.

    Args:
        pixels: [N, 3, 32, 32] in -1..1.
        references: [K, 3, 32, 32] in -1..1, all of one thing.

    Returns:
        [N] cosine similarities of the images' embeddings to the mean of the references'.
    """
    network = load_identity()
    centre = functional.normalize(network(references).mean(0), dim=0)
    return network(pixels) @ centre
