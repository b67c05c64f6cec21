"""The small pictures say what they should."""

from seqlora_core.plots import crosstalk_map, loss_curve, overlap_map


def darkness(image, box) -> float:
    values = list(image.crop(box).convert("L").tobytes())
    return 255 - sum(values) / len(values)


def test_a_falling_loss_is_drawn_from_the_upper_left_to_the_lower_right():
    picture = loss_curve([1.0, 0.6, 0.3, 0.1], "x")
    width, height = picture.size
    left, right = 80, width - 17
    blue = [(x, y) for x in (left, right) for y in range(height) if picture.getpixel((x, y)) == (30, 110, 200)]
    assert min(y for x, y in blue if x == left) < height / 4
    assert max(y for x, y in blue if x == right) > height * 3 / 4


def test_one_loss_is_drawn_too():
    assert loss_curve([0.5], "x").size == (640, 360)


def test_overlapping_pairs_are_darker_than_orthogonal_ones():
    names = ["a", "b", "c"]
    picture = overlap_map(names, {("a", "b"): 0.5, ("a", "c"): 1e-9, ("b", "c"): 1e-4})
    left = 12 + 7

    def cell(row: int, column: int) -> float:
        return darkness(
            picture, (left + column * 28 + 4, 36 + row * 28 + 4, left + column * 28 + 22, 36 + row * 28 + 22)
        )

    assert cell(0, 0) == 255
    assert cell(0, 1) == cell(1, 0) > cell(1, 2) > cell(0, 2) == 0


def test_crosstalk_is_drawn_in_the_row_of_the_concept_that_it_disturbs():
    picture = crosstalk_map(["a", "b"], [[1.0, 0.1], [1e-6, 1.0]])

    def cell(row: int, column: int) -> float:
        corner = (19 + column * 28 + 4, 36 + row * 28 + 4)
        return darkness(picture, (*corner, corner[0] + 18, corner[1] + 18))

    assert cell(0, 0) == 255 > cell(0, 1) > cell(1, 0) == 0
