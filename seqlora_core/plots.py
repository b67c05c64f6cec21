"""Small pictures of a training, drawn with Pillow alone."""

from collections.abc import Sequence

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
