"""What the small plots show, wherever their parts are placed."""

import numpy as np
from PIL import Image, ImageChops

from seqlora_core.plots import crosstalk_map, loss_curve, overlap_map

NAMES = ["a", "b", "c"]


def drawn_curve(losses: list[float], other: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the coloured pixels that the curve of `losses` has and that of `other`, of the same range, has not."""
    one, two = (np.asarray(loss_curve(values, "x"), dtype=int) for values in (losses, other))
    y, x = np.nonzero((one != two).any(axis=2) & (np.ptp(one, axis=2) > 60))
    return x, y


def changed(image: Image.Image, other: Image.Image) -> tuple[float, float, int]:
    """Center (x, y) of the region in which two images differ, and the number of its pixels."""
    difference = np.asarray(ImageChops.difference(image, other).convert("L"))
    y, x = np.nonzero(difference)
    return x.mean(), y.mean(), len(x)


def shade(image: Image.Image, blank: Image.Image) -> int:
    """The largest difference from a map that has no such pair: 0 is white, 255 is black."""
    return ImageChops.difference(image, blank).convert("L").getextrema()[1]


def overlaps(*pairs: tuple[str, str, float]) -> Image.Image:
    return overlap_map(NAMES, {(first, second): value for first, second, value in pairs})


def crosstalk(*effects: tuple[int, int, float]) -> Image.Image:
    table = np.zeros((3, 3))
    for row, column, value in effects:
        table[row, column] = value
    return crosstalk_map(NAMES, table.tolist())


def test_a_falling_loss_is_drawn_from_the_upper_left_to_the_lower_right():
    losses = [1.0, 0.6, 0.3, 0.1]
    x, y = drawn_curve(losses, losses[::-1])
    height = loss_curve(losses, "x").height
    assert y[x == x.min()].min() < height / 4
    assert y[x == x.max()].max() > height * 3 / 4


def test_the_loss_of_held_out_images_is_a_line_of_its_own_with_a_legend():
    losses, held_out = [1.0, 0.6, 0.3, 0.1], [1.0, 0.9, 0.8, 0.7]
    without, both = (np.asarray(loss_curve(losses, "x", own), dtype=int) for own in ((), held_out))
    orange = (both[:, :, 0] > 180) & (both[:, :, 2] < 100)
    y, x = np.nonzero(orange)
    assert x.max() - x.min() > both.shape[1] / 2 and y[x == x.max()].max() < both.shape[0] / 2
    assert orange[:40].any()  # in the legend
    assert not ((without[:, :, 0] > 180) & (without[:, :, 2] < 100)).any()


def test_one_loss_is_drawn_too():
    assert loss_curve([0.5], "x", size=(320, 200)).size == (320, 200)


def test_overlapping_pairs_are_darker_than_orthogonal_ones():
    shades = [shade(overlaps(("a", "b", value)), overlaps()) for value in (1.0, 0.5, 1e-4, 1e-9)]
    assert 255 == shades[0] > shades[1] > shades[2] > shades[3] == 0


def test_an_overlap_has_two_squares_one_on_each_side_of_the_diagonal():
    squares = [changed(overlaps((*pair, 1.0)), overlaps()) for pair in (("a", "b"), ("b", "a"), ("b", "c"))]
    x, y, pixels = changed(crosstalk((0, 0, 1.0)), crosstalk())
    assert squares[0] == squares[1] and squares[0][2] == 2 * pixels
    assert squares[0][0] - x == squares[0][1] - y > 0  # centered on the diagonal, right of and below its first square
    assert squares[2][0] > squares[0][0]


def test_every_concept_overlaps_itself_completely():
    diagonal = [changed(crosstalk((place, place, 1.0)), crosstalk()) for place in range(len(NAMES))]
    assert all(overlaps().getpixel((round(x), round(y))) == (0, 0, 0) for x, y, _ in diagonal)


def test_crosstalk_is_drawn_in_the_row_of_the_disturbed_concept():
    blank = crosstalk()
    first_x, first_y, _ = changed(crosstalk((0, 1, 1.0)), blank)
    second_x, second_y, _ = changed(crosstalk((1, 0, 1.0)), blank)
    assert first_y < second_y and first_x > second_x
    shades = [shade(crosstalk((0, 1, value)), blank) for value in (1.0, 0.1, 1e-6)]
    assert 255 == shades[0] > shades[1] > shades[2] == 0
