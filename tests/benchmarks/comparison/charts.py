"""Line and scatter charts, drawn with Pillow as the project's other plots are."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

_INK, _GRID = (40, 40, 40), (225, 225, 225)
_COLOURS = (
    *((30, 110, 200), (130, 185, 240), (205, 80, 50), (60, 150, 70), (140, 85, 180), (120, 120, 120)),
    *((215, 160, 30), (30, 160, 160), (200, 90, 150), (110, 80, 50), (150, 190, 60), (90, 110, 240)),
)
_SIZE = (760, 460)
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 24, 300, 44  # margins; the legend is on the right

Points = Sequence[tuple[float, float]]


def curves(series: Mapping[str, Points], across: str, up: str) -> Image.Image:
    """Draw a line through the points of each series, the first one thick."""
    image, place = _axes(series, across, up)
    draw = ImageDraw.Draw(image)
    for number, points in enumerate(series.values()):
        colour, at = _COLOURS[number % len(_COLOURS)], [place(*point) for point in points]
        draw.line([*at, at[-1]], fill=colour, width=1 if number else 3)
        for x, y in at:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    return image


def scatter(series: Mapping[str, Points], across: str, up: str) -> Image.Image:
    """Draw a dot for each point."""
    image, place = _axes(series, across, up)
    draw = ImageDraw.Draw(image)
    for number, points in enumerate(series.values()):
        for x, y in (place(*point) for point in points):
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_COLOURS[number % len(_COLOURS)])
    return image


def few_colours(image: Image.Image) -> Image.Image:
    """Reduce to a palette of 128 colours: a quarter of the bytes, and no visible difference in thumbnails."""
    return image.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _axes(series: Mapping[str, Points], across: str, up: str):
    """Draw an empty chart with a legend; return it with the map from a point to its pixel."""
    width, height = _SIZE
    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    everything = [point for points in series.values() for point in points]
    (left, right), (low, high) = (_range([point[axis] for point in everything]) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        share_x, share_y = (x - left) / (right - left), (y - low) / (high - low)
        return _LEFT + share_x * (width - _RIGHT - _LEFT), height - _BOTTOM - share_y * (height - _BOTTOM - _TOP)

    for y in _ticks(low, high):
        draw.line([place(left, y), place(right, y)], fill=_GRID)
        draw.text((8, place(left, y)[1] - 6), f"{y:g}", fill=_INK)
    for x in _ticks(left, right):
        draw.line([place(x, low), place(x, high)], fill=_GRID)
        draw.text((place(x, low)[0] - 6, height - _BOTTOM + 6), f"{x:g}", fill=_INK)
    draw.text((_LEFT, height - 20), across, fill=_INK)
    draw.text((8, 6), up, fill=_INK)
    for number, title in enumerate(series):
        y = _TOP + 18 * number
        colour = _COLOURS[number % len(_COLOURS)]
        draw.line([(width - _RIGHT + 12, y), (width - _RIGHT + 28, y)], fill=colour, width=3)
        draw.text((width - _RIGHT + 34, y - 6), title, fill=_INK)
    return image, place


def _ticks(low: float, high: float) -> list[float]:
    """About half a dozen round numbers between two."""
    power = 10 ** math.floor(math.log10(high - low))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if (high - low) / step < 8)
    return [round(step * count, 9) for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
