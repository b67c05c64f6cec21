"""Charts of training runs and banks, and image grids, drawn with Pillow only; all sizes are in px."""

import math
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw

_INK, _GRID = (40, 40, 40), (225, 225, 225)
_LINES = ((30, 110, 200), (205, 80, 50), (60, 150, 70), (140, 85, 180), (120, 120, 120), (215, 160, 30))


def loss_curve(
    losses: Sequence[float], title: str, held_out: Sequence[float] = (), size: tuple[int, int] = (640, 360)
) -> Image.Image:
    """Draw the losses of a training run, and those of its held-out images, with their range at the axis."""
    return line_chart({title: losses, **({"held-out images": held_out} if held_out else {})}, size)


def line_chart(curves: Mapping[str, Sequence[float]], size: tuple[int, int] = (640, 360)) -> Image.Image:
    """Draw several series on one scale, each stretched over the whole width, with a legend."""
    width, height = size
    left, top, right, bottom = 70, 20 + 16 * len(curves), width - 16, height - 24
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    everything = [value for values in curves.values() for value in values]
    low, high = min(everything), max(everything)
    span = (high - low) or 1.0
    for step in range(5):
        y = top + (bottom - top) * step / 4
        draw.line([(left, y), (right, y)], fill=_GRID)
        draw.text((8, y - 6), f"{high - span * step / 4:.4f}", fill=_INK)
    for number, (title, values) in enumerate(curves.items()):
        colour = _LINES[number % len(_LINES)]
        points = [
            (left + (right - left) * index / max(len(values) - 1, 1), bottom - (bottom - top) * (value - low) / span)
            for index, value in enumerate(values)
        ]
        draw.line([*points, points[-1]], fill=colour, width=2)
        draw.line([(left, 16 + 16 * number), (left + 18, 16 + 16 * number)], fill=colour, width=3)
        draw.text((left + 26, 10 + 16 * number), title, fill=_INK)
    return image


def image_grid(
    titles: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]],
    footer: Sequence[tuple[str, Sequence[Image.Image]]] = (),
    cell: int = 96,
) -> Image.Image:
    """Arrange images in labelled rows and titled groups of columns.

    Args:
        titles: one title per group of columns.
        rows: for each row a label, and for each title a group of images, which may be empty.
        footer: further rows, with a label above them, that extend over all columns.
        cell: side of the square for each image.
    """
    label, head, gap = 110, 24, 10
    sizes = [max(1, *(len(groups[column]) for _, groups in rows)) for column in range(len(titles))]
    lefts = [label + sum(sizes[:i]) * cell + i * gap for i in range(len(sizes))]
    footer_top = head + len(rows) * cell
    image = Image.new(
        "RGB", (lefts[-1] + sizes[-1] * cell + gap, footer_top + len(footer) * (cell + head) + gap), "white"
    )
    draw = ImageDraw.Draw(image)
    for title, left in zip(titles, lefts, strict=True):
        draw.text((left + 2, 6), title, fill=_INK)
    for number, (name, groups) in enumerate(rows):
        top = head + number * cell
        draw.text((8, top + cell // 2 - 6), name, fill=_INK)
        for left, group in zip(lefts, groups, strict=True):
            _place(image, group, left, top, cell)
    for number, (name, images) in enumerate(footer):
        top = footer_top + number * (cell + head)
        draw.text((label + 2, top + 8), name, fill=_INK)
        _place(image, images, label, top + head, cell)
    return image


def _place(image: Image.Image, images: Sequence[Image.Image], left: int, top: int, cell: int) -> None:
    for number, content in enumerate(images):
        small = content.resize((cell - 4, cell - 4), Image.Resampling.LANCZOS)
        image.paste(small, (left + number * cell + 2, top + 2))


def overlap_map(names: Sequence[str], pairs: Mapping[tuple[str, str], float], cell: int = 28) -> Image.Image:
    """Draw one square per pair of concepts: white below 1e-8, black at 1, on a logarithmic scale.

    Args:
        names: the concepts, written along the side.
        pairs: the overlap of each pair; missing pairs count as 0.
        cell: side of a square.
    """

    def value(row: int, column: int) -> float:
        pair = names[row], names[column]
        return 1.0 if row == column else pairs.get(pair, pairs.get(pair[::-1], 0.0))

    return _heat_map(names, value, "overlap of bases: white 1e-8 or less, black 1", 8, cell)


def crosstalk_map(names: Sequence[str], crosstalk: Sequence[Sequence[float]], cell: int = 28) -> Image.Image:
    """Draw one square per ordered pair: the effect of the column's concept on the row's.

    White is below 1e-4 of the own effect of the row's concept, and black is 1, on a logarithmic scale.

    Args:
        names: the concepts, written along the side.
        crosstalk: row by row.
        cell: side of a square.
    """

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
