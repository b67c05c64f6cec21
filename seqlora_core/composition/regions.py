"""Regions of an image with a prompt of their own: areas, masks, and cross-attention of all of them in one pass.

    out = (1 - sum_r w_r) Attn(Q, K0, V0) + sum_r w_r Attn(Q, K_r, V_r),    w_r = m_r / max(1, sum m)

with the keys and values K0, V0 of the global prompt, and K_r, V_r of a region's; m_r is a region's mask times its
strength.  What no region covers is the global prompt's, and overlapping regions share.  The queries Q are computed
once, so a region costs no evaluation of the UNet.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bank import Bank
from ..data.prompts import shorten
from ..errors import UserError
from .selection import parse_selections

DEFAULT_STRENGTH = 1 / 3
_HALVINGS = 8  # more than any UNet has
_ROUNDING = 1e-6  # of an edge that a host computes from pixels


class Box(NamedTuple):
    """A rectangle, in fractions of the canvas from its left and its top."""

    left: float
    top: float
    right: float
    bottom: float

    def cut(self) -> "Box":
        """Return the part that lies on the canvas."""
        return Box(*(min(max(edge, 0.0), 1.0) for edge in self))

    def __str__(self) -> str:
        return ",".join(f"{edge:g}" for edge in self)


@dataclass(frozen=True)
class Region:
    """One area of the image with a prompt of its own.

    Attributes:
        prompt: what the area shows; empty for the prompt of the whole image, which then needs `concepts`.
        area: a `Box`, or a mask [H, W] of values 0..1 in any resolution, which is scaled to the canvas.
        negative: what guidance steers away from in the area; None for the global negative prompt.
        concepts: (name, strength) of each concept that acts in the area; None for those that `prompt` names.
        strength: share of the region's prompt in the area, 0..1; the rest is the global prompt's.
        start: share of the sampling after which the region begins to act, 0..1.
        end: share of the sampling after which it no longer acts, 0..1.
        feather: width of the transition at a box's edges, as a fraction of the canvas; edges of the canvas have none.

    Raises:
        UserError: a value is out of its bounds, the area is empty, or a concept is listed twice.
    """

    prompt: str
    area: Box | Tensor
    negative: str | None = None
    concepts: tuple[tuple[str, float], ...] | None = None
    strength: float = DEFAULT_STRENGTH
    start: float = 0.0
    end: float = 1.0
    feather: float = 0.0

    def __post_init__(self) -> None:
        name = self.label
        if not self.prompt.strip() and not self.concepts:
            raise UserError(
                "A region has no prompt: write what its area shows, or list its concepts to keep the prompt of the "
                "whole image there."
            )
        for setting in ("strength", "start", "end", "feather"):
            if not 0 <= getattr(self, setting) <= 1:  # NaN, too
                raise UserError(
                    f"The {setting} of the region {name} must be between 0 and 1, not {getattr(self, setting):g}."
                )
        if self.start >= 1:
            raise UserError(f"The region {name} starts at 1, when the image is done: set a start below 1.")
        if self.start >= self.end:
            raise UserError(
                f"The region {name} ends at {self.end:g}, before it starts: set an end above {self.start:g}."
            )
        names = [own for own, _ in self.concepts or ()]
        if repeated := next((own for own in names if names.count(own) > 1), None):
            raise UserError(f"The region {name} lists {repeated!r} twice: give it one strength.")
        if isinstance(self.area, Box):
            self._check_box(name)
        else:
            self._check_mask(name)

    @property
    def label(self) -> str:
        """The region as messages call it: by its prompt, or by its concepts."""
        return shorten(self.prompt if self.prompt.strip() else ", ".join(name for name, _ in self.concepts or ()))

    def _check_box(self, name: str) -> None:
        if not all(map(math.isfinite, self.area)):
            raise UserError(f"The box of the region {name} must have four finite numbers, not {self.area}.")
        left, top, right, bottom = self.area
        if left >= right or top >= bottom:
            raise UserError(
                f"The box {self.area} of the region {name} is empty: give left, top, right, bottom, with left below "
                "right and top below bottom."
            )
        left, top, right, bottom = self.area.cut()
        if left >= right or top >= bottom:
            raise UserError(
                f"The box {self.area} of the region {name} lies outside the canvas: give fractions between 0 and 1."
            )

    def _check_mask(self, name: str) -> None:
        if self.area.ndim != 2 or not self.area.numel():
            raise UserError(f"The mask of the region {name} must be one image [H, W], not {list(self.area.shape)}.")
        if not (self.area.isfinite().all() and (self.area > 0).any()):
            raise UserError(f"The mask of the region {name} is empty or not finite: paint an area in white.")
        if self.feather:
            raise UserError(f"The region {name} has a mask, whose edges are its own: set its feather to 0.")

    def acts_at(self, progress: float) -> bool:
        """Return whether the region acts when that share of the sampling is done, 0..1."""
        return self.start <= progress and (progress < self.end or self.end >= 1)

    def mask(self, height: int, width: int) -> Tensor:
        """Return the share of each cell of a grid that the area covers, [height, width] of 0..1, without the strength.

        The masks of two boxes that share an edge add up to 1 along it, feathered or not.
        """
        if isinstance(self.area, Box):
            left, top, right, bottom = self.area.cut()
            rows, columns = _covered(top, bottom, self.feather, height), _covered(left, right, self.feather, width)
            return torch.outer(rows, columns).float()
        mask = self.area.detach().cpu().float().clamp(0, 1)
        return F.interpolate(mask[None, None], (height, width), mode="area")[0, 0]


def parse_region(text: str, **settings: float) -> Region:
    """Parse `LEFT,TOP,RIGHT,BOTTOM=PROMPT [CONCEPT[:STRENGTH], ...]`, with the box in fractions of the canvas.

    Without the concepts in brackets, those act that the prompt names; without a prompt, it is that of the whole image.
    Only the last brackets, at the end of the text, list concepts; others belong to the prompt.

    Args:
        settings: strength, start, end and feather of the region.

    Raises:
        UserError: the text has another form, or see `Region` and `selection.parse_selection`.
    """
    box, equals, content = text.partition("=")
    try:
        edges = [float(edge) for edge in box.split(",")]
    except ValueError:
        edges = []
    if not equals or len(edges) != 4:
        raise UserError(
            f"The region {shorten(text)} is not LEFT,TOP,RIGHT,BOTTOM=PROMPT: write, for example, "
            "'0,0,0.5,1=a sksdog on grass' or '0,0,0.5,1=[dog]'."
        )
    content = content.strip()
    if content.startswith("[") and not content.endswith("]"):
        raise UserError(f"The concepts of the region {shorten(text)} must end the text: write PROMPT [dog, cat:0.8].")
    prompt, bracket, listed = content.rpartition("[")
    if not bracket or not listed.endswith("]"):
        return Region(content, Box(*edges), **settings)
    return Region(prompt.strip(), Box(*edges), concepts=tuple(parse_selections(listed[:-1])), **settings)


def with_names_of(bank: Bank, region: Region) -> Region:
    """Return a region whose concepts have the names that the bank gives them.

    Raises:
        UserError: the bank has no such concept, or the region lists one twice.
    """
    if region.concepts is None:
        return region
    named = tuple((bank.concept(name).name, strength) for name, strength in region.concepts)
    return replace(region, concepts=named)


def describe_idle_regions(regions: Sequence[Region], progresses: Collection[float]) -> list[str]:
    """Report regions that act in no step of a sampling, as sentences.

    Args:
        progresses: the share of the sampling that is done at each step, 0..1.
    """
    return [
        f"The region {region.label} acts in no step of this sampling: start it earlier, end it later, or take more "
        "steps."
        for region in regions
        if not any(map(region.acts_at, progresses))
    ]


def describe_cut_boxes(regions: Sequence[Region]) -> list[str]:
    """Report boxes that reach beyond the canvas, as sentences."""
    boxes = [(region, region.area) for region in regions if isinstance(region.area, Box)]
    return [
        f"The box {box} of the region {region.label} reaches beyond the canvas and is cut to {box.cut()}."
        for region, box in boxes
        if box != box.cut()
    ]


@dataclass(frozen=True)
class Canvas:
    """The latents that regions lie on, and the grids of a UNet's levels over them.

    Attributes:
        height: in latent px.
        width: in latent px.
    """

    height: int
    width: int

    @cached_property
    def _grids(self) -> dict[int, tuple[int, int]]:
        """(height, width) of each level by its number of tokens; each level halves and rounds up."""
        halvings = [2**level for level in range(_HALVINGS)]
        grids = [(math.ceil(self.height / by), math.ceil(self.width / by)) for by in halvings]
        return {height * width: (height, width) for height, width in reversed(grids)}

    def grid(self, tokens: int) -> tuple[int, int]:
        """Return (height, width) of the level whose attention has that many tokens.

        Raises:
            ValueError: no level has.
        """
        if tokens not in self._grids:
            raise ValueError(f"no level of latents of {self.height} x {self.width} has {tokens} tokens")
        return self._grids[tokens]


def region_weights(regions: Sequence[Region], height: int, width: int, progress: float = 0.0) -> Tensor:
    """Compute each region's share w_r of the cells of a grid: [R, height * width], which sums to at most 1.

    Args:
        progress: share of the sampling that is done, 0..1; a region that does not act there has the share 0.
    """
    if not regions:
        return torch.zeros(0, height * width)
    strengths = [region.strength * region.acts_at(progress) for region in regions]
    masks = torch.stack(
        [strength * region.mask(height, width) for region, strength in zip(regions, strengths, strict=True)]
    )
    return (masks / masks.sum(0).clamp_min(1)).flatten(1)


def covered_tokens(weights: Tensor) -> list[Tensor]:
    """Return the tokens that each region has a share in, as indices; attention elsewhere would be computed for nothing.

    Args:
        weights: [R, N] on the CPU (see `region_weights`); elsewhere the device would have to be waited for.
    """
    return [weight.nonzero().flatten() for weight in weights]


def attend_in_regions(
    attend: Callable[[int, Tensor], Tensor],
    output: Tensor,
    weights: Tensor,
    tokens: Sequence[Tensor],
    plain: Tensor | None = None,
) -> Tensor:
    """Compute the cross-attention of the global prompt and the regions.

    Args:
        attend: (region, tokens [n]) -> what these tokens' queries attend to in the region's text, [rows, n, d].
        output: what all queries attend to in the global prompt, [rows, N, d].
        weights: [R, N], the share of each region in each token (see `region_weights`).
        tokens: those of each region (see `covered_tokens`), on the device of `output`.
        plain: the part of `output` that regions take the place of; None for all of it.
    """
    everyones = weights.sum(0)[:, None].to(output.dtype)
    result = (1 - everyones) * output if plain is None else output - everyones * plain
    for region, (weight, own) in enumerate(zip(weights, tokens, strict=True)):
        if len(own):
            result[:, own] += weight[own, None].to(output.dtype) * attend(region, own)
    return result


def _covered(first: float, last: float, feather: float, cells: int) -> Tensor:
    """The share of each of some equal cells of 0..1 that lies between two edges, each a ramp of width `feather`.

    An edge on the canvas's border is no transition: nothing is beyond it.
    """
    borders = torch.linspace(0, 1, cells + 1, dtype=torch.float64)

    def beyond(edge: float) -> Tensor:
        """The share of each cell beyond an edge: the mean of the ramp, by its antiderivative."""
        distance = borders - edge
        if feather == 0:
            area = distance.clamp_min(0)
        else:
            area = (distance.clamp(-feather / 2, feather / 2) + feather / 2).square() / (2 * feather)
            area = area + (distance - feather / 2).clamp_min(0)
        return area.diff() * cells

    inside = torch.ones(cells, dtype=torch.float64) if first <= _ROUNDING else beyond(first)
    return (inside if last >= 1 - _ROUNDING else inside - beyond(last)).clamp(0, 1)
