"""Small pictures of a training and of a bank, drawn with Pillow alone."""

import math
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw

_INK, _GRID, _LINE = (40, 40, 40), (225, 225, 225), (30, 110, 200)


def loss_curve(losses: Sequence[float], title: str, size: tuple[int, int] = (640, 360)) -> Image.Image:
    """The losses of a training over its course, with their range written at the axis."""
    width, height = size
    left, top, right, bottom = 70, 36, width - 16, height - 24
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    for step in range(5):
        y = top + (bottom - top) * step / 4
        draw.line([(left, y), (right, y)], fill=_GRID)
        draw.text((8, y - 6), f"{high - span * step / 4:.4f}", fill=_INK)
    points = [
        (left + (right - left) * index / max(len(losses) - 1, 1), bottom - (bottom - top) * (loss - low) / span)
        for index, loss in enumerate(losses)
    ]
    draw.line([*points, points[-1]], fill=_LINE, width=2)
    draw.text((left, 10), title, fill=_INK)
    return image


def overlap_map(names: Sequence[str], pairs: Mapping[tuple[str, str], float], cell: int = 28) -> Image.Image:
    """A square a pair of concepts: white below 1e-8, black at 1 (on a logarithmic scale), names along the side."""

    def value(row: int, column: int) -> float:
        pair = names[row], names[column]
        return 1.0 if row == column else pairs.get(pair, pairs.get(pair[::-1], 0.0))

    return _heat_map(names, value, "overlap of bases: white 1e-8 or less, black 1", 8, cell)


def crosstalk_map(names: Sequence[str], crosstalk: Sequence[Sequence[float]], cell: int = 28) -> Image.Image:
    """A square for what a concept (column) adds to another (row): white below 1e-4 of its own effect, black at 1."""

    def value(row: int, column: int) -> float:
        return crosstalk[row][column]

    return _heat_map(names, value, "crosstalk on each row's: white 1e-4 or less, black 1", 4, cell)


def _heat_map(
    names: Sequence[str], value: Callable[[int, int], float], caption: str, decades: int, cell: int
) -> Image.Image:
    margin = 12 + 7 * min(max((len(name) for name in names), default=1), 24)
    side = max(len(names) * cell, 240)
    image = Image.new("RGB", (margin + side + 12, side + 48), "white")
    draw = ImageDraw.Draw(image)
    draw.text((8, 10), caption, fill=_INK)
    for row, name in enumerate(names):
        draw.text((8, 36 + row * cell + cell // 3), name[:24], fill=_INK)
        for column in range(len(names)):
            share = 1 + math.log10(max(value(row, column), 10.0**-decades)) / decades
            shade = round(255 * (1 - min(share, 1.0)))
            corner = (margin + column * cell, 36 + row * cell)
            draw.rectangle([corner, (corner[0] + cell - 2, corner[1] + cell - 2)], fill=(shade,) * 3, outline=_GRID)
    return image
