"""Aspect-ratio buckets: training images keep about their own ratio, at about the same number of pixels.

As in NovelAI's and kohya's trainers, sizes come from a short list, so that images of like ratio make one minibatch.
"""

import math
from functools import cache

from PIL import Image, ImageOps

LONGEST = 2.0  # times the resolution


@cache
def bucket_sizes(resolution: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """All (width, height) in px, from upright to wide.

    Both sides are multiples of `multiple`; for each width the height is the largest that has at most the pixels of the
    square, and no side is longer than twice the square's.

    Args:
        resolution: side of the square, a multiple of `multiple`.
    """
    longest = int(LONGEST * resolution)
    widths = range(multiple, longest + 1, multiple)
    sizes = [(width, min(resolution**2 // width, longest) // multiple * multiple) for width in widths]
    tallest = {height: (width, height) for width, height in sizes if height}  # of one height, the widest
    return tuple(sorted(tallest.values()))


def bucket_size(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """The (width, height) of the list whose ratio is nearest to that of an image of `size`."""
    ratio = math.log(size[0] / size[1])
    return min(bucket_sizes(resolution, multiple), key=lambda sides: abs(math.log(sides[0] / sides[1]) - ratio))


def fit_to_bucket(image: Image.Image, resolution: int, multiple: int) -> Image.Image:
    """Scale an image to its bucket's size, and crop what is over evenly."""
    return ImageOps.fit(image, bucket_size(image.size, resolution, multiple), Image.Resampling.LANCZOS)
