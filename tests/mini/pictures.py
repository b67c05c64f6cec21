"""Pictures of the mini world: emoji on all sorts of backgrounds, with captions that say what is where."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from seqlora_core.data.prompts import TEMPLATES

from .catalogue import Thing, things

SIZE = 32
TWO_THINGS = 0.25
GOOGLE = 0.8  # the rest is drawn in Twitter's style: a second look of the same thing, never of a concept
RELATIONS = ("left of", "right of", "above", "below")
FRAMES = ("{}", "photo of {}", "a photo of {}", "a picture of {}", "an emoji of {}")
COLOURS = {
    "red": (214, 60, 56),
    "orange": (240, 150, 60),
    "yellow": (245, 220, 95),
    "green": (95, 170, 85),
    "teal": (70, 165, 165),
    "blue": (75, 120, 205),
    "purple": (140, 95, 185),
    "pink": (240, 165, 195),
    "brown": (135, 95, 70),
    "gray": (150, 150, 155),
    "white": (244, 244, 242),
    "black": (35, 35, 40),
}
PATTERNS = ("striped", "dotted", "checked")


@dataclass(frozen=True)
class Scene:
    """What a picture shows, for its captions.

    Attributes:
        shown: one or two indices into `things()`.
        relation: of the first to the second, or "".
        background: what follows "on a", such as "red and blue background".
    """

    shown: tuple[int, ...]
    relation: str
    background: str


def random_scene(rng: np.random.Generator, sprites: np.ndarray, pool: int) -> tuple[np.ndarray, Scene]:
    """One picture [32, 32, 3] uint8 of the first `pool` things."""
    if rng.random() < TWO_THINGS:
        first, second = (int(index) for index in rng.choice(pool, 2, replace=False))
        return two_things(rng, sprites, first, second, str(rng.choice(RELATIONS)))
    return one_thing(rng, sprites, int(rng.integers(pool)))


def one_thing(rng: np.random.Generator, sprites: np.ndarray, index: int) -> tuple[np.ndarray, Scene]:
    """A thing of 21 to 30 pixels anywhere in the picture."""
    canvas, background = _background(rng)
    size = int(rng.integers(21, 31))
    free = SIZE - size
    _paste(rng, canvas, sprites[index], size, (rng.integers(free + 1), rng.integers(free + 1)))
    return np.asarray(canvas), Scene((index,), "", background)


def two_things(
    rng: np.random.Generator, sprites: np.ndarray, first: int, second: int, relation: str
) -> tuple[np.ndarray, Scene]:
    """Two things of 13 to 16 pixels, each in the middle of its half of the picture."""
    canvas, background = _background(rng)
    for index, (x, y) in zip((first, second), half_centres(relation), strict=True):
        size = int(rng.integers(13, 17))
        corner = np.array([x, y]) - size / 2 + rng.uniform(-0.7, 0.7, 2)
        _paste(rng, canvas, sprites[index], size, np.clip(corner.round(), 0, SIZE - size))
    return np.asarray(canvas), Scene((first, second), relation, background)


def half_centres(relation: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the first and the second thing stand, (x, y) in pixels."""
    near, middle, far = SIZE // 4, SIZE // 2, SIZE * 3 // 4
    return {
        "left of": ((near, middle), (far, middle)),
        "right of": ((far, middle), (near, middle)),
        "above": ((middle, near), (middle, far)),
        "below": ((middle, far), (middle, near)),
    }[relation]


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """One of the many ways to say what a picture shows."""
    nouns = [_noun(rng, things()[index]) for index in scene.shown]
    if len(nouns) == 1 and rng.random() < 0.5:
        text = str(rng.choice(TEMPLATES)).format(nouns[0])
    else:
        text = str(rng.choice(FRAMES)).format(_phrase(rng, scene, nouns))
    return f"{text} on a {scene.background}" if rng.random() < 0.6 else text


def _phrase(rng: np.random.Generator, scene: Scene, nouns: list[str]) -> str:
    words = [noun if rng.random() < 0.25 else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns]
    if len(words) == 1:
        return words[0]
    return f"{words[0]} {'and' if rng.random() < 0.2 else scene.relation} {words[1]}"


def _noun(rng: np.random.Generator, thing: Thing) -> str:
    """The thing's name or its kind, now and then after a word that means nothing: so the base reads "TOKEN CLASS",
    whatever the token, as the class."""
    word = thing.kind if thing.kind and rng.random() < 0.12 else thing.name
    if rng.random() < 0.2:
        letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), int(rng.integers(3, 8)))
        word = f"{''.join(letters)} {word}"
    return word


def _paste(rng: np.random.Generator, canvas: Image.Image, looks: np.ndarray, size: int, corner) -> None:
    sprite = Image.fromarray(looks[0 if len(looks) == 1 or rng.random() < GOOGLE else 1])
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC)
    sprite = sprite.resize((size, size), Image.Resampling.LANCZOS)
    canvas.paste(sprite, (int(corner[0]), int(corner[1])), sprite)


def _background(rng: np.random.Generator) -> tuple[Image.Image, str]:
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    start, end = (np.clip(np.array(COLOURS[name]) + rng.normal(0, 10, 3), 0, 255) for name in (first, second))
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    kind = rng.random()
    if kind < 0.6:
        blend, words = np.zeros_like(x), f"{first} background"
    elif kind < 0.85:
        angle = rng.uniform(0, 2 * np.pi)
        slope = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
        blend, words = np.clip(slope + 0.5, 0, 1), f"{first} and {second} background"
    else:
        pattern = str(rng.choice(PATTERNS))
        end = start * 0.8 + 0.2 * (255 if start.mean() < 128 else 0)
        blend, words = _pattern(pattern, x, y), f"{pattern} {first} background"
    pixels = start + (end - start) * blend[..., None]
    return Image.fromarray(pixels.round().astype(np.uint8)), words


def _pattern(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if name == "striped":
        return ((x + y) * 4 % 2 < 1).astype(float)
    if name == "dotted":
        return (np.hypot(x * 4 % 1 - 0.5, y * 4 % 1 - 0.5) < 0.28).astype(float)
    return ((np.floor(x * 4) + np.floor(y * 4)) % 2).astype(float)
