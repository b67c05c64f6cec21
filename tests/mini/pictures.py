"""Pictures of the mini world: emoji on all sorts of backgrounds, with captions that say what is where."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from seqlora_core.data.prompts import TEMPLATES

from .catalogue import Thing, things

SIZE = 32
TWO_THINGS = 0.25
SAME_KIND = 0.15  # of two things in `arranged_scene`
GOOGLE = 0.8  # the rest is drawn in Twitter's style: a second look of the same thing, never of a concept
RELATIONS = ("left of", "right of", "above", "below")
NEAR, MIDDLE, FAR = SIZE // 4, SIZE // 2, SIZE * 3 // 4
SIDES = {
    "on the left": (NEAR, MIDDLE),
    "on the right": (FAR, MIDDLE),
    "at the top": (MIDDLE, NEAR),
    "at the bottom": (MIDDLE, FAR),
}
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
        relation: of the first to the second; of a thing alone, the side that it stands at, or "".
        background: what follows "on a", such as "red and blue background".
    """

    shown: tuple[int, ...]
    relation: str
    background: str


@dataclass(frozen=True)
class Habits:
    """How often captions do what.

    Attributes:
        bare: leave out the article.
        conjunction: say "and" instead of the relation.
        kind: name the thing's kind instead of the thing.
        nonsense: put a word that means nothing before the noun, so that the base reads "TOKEN CLASS", whatever the
            token, as the class.
        background: name the background.
    """

    bare: float = 0.25
    conjunction: float = 0.2
    kind: float = 0.12
    nonsense: float = 0.2
    background: float = 0.6


WORDY = Habits()
PLAIN = Habits(bare=0.1, conjunction=0.08, kind=0.06, nonsense=0.15, background=0.35)
Draw = Callable[[np.random.Generator, np.ndarray, int], tuple[np.ndarray, Scene]]


def random_scene(rng: np.random.Generator, sprites: np.ndarray, pool: int) -> tuple[np.ndarray, Scene]:
    """One picture [32, 32, 3] uint8 of the first `pool` things."""
    if rng.random() < TWO_THINGS:
        first, second = (int(index) for index in rng.choice(pool, 2, replace=False))
        return two_things(rng, sprites, first, second, str(rng.choice(RELATIONS)))
    return one_thing(rng, sprites, int(rng.integers(pool)))


def arranged_scene(rng: np.random.Generator, sprites: np.ndarray, pool: int) -> tuple[np.ndarray, Scene]:
    """As `random_scene`, for a base that draws things where it is told to: half of the images show two things, now and
    then of the same kind or the same thing twice, and some show a small thing alone at one side."""
    first = int(rng.integers(pool))
    roll = rng.random()
    if roll < 0.5:
        second = int(rng.choice(_like(first, pool) if rng.random() < SAME_KIND else pool))
        return two_things(rng, sprites, first, second, str(rng.choice(RELATIONS)))
    if roll < 0.6:
        return thing_at_side(rng, sprites, first, str(rng.choice(list(SIDES))))
    return one_thing(rng, sprites, first)


def _like(index: int, pool: int) -> list[int]:
    """The things of the same kind, or with the same last word in their names; the thing itself is one."""
    kind, word = things()[index].kind, things()[index].name.split()[-1]
    return [i for i in range(pool) if (kind and things()[i].kind == kind) or things()[i].name.split()[-1] == word]


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
    for index, centre in zip((first, second), half_centres(relation), strict=True):
        _paste_small(rng, canvas, sprites[index], centre)
    return np.asarray(canvas), Scene((first, second), relation, background)


def thing_at_side(rng: np.random.Generator, sprites: np.ndarray, index: int, side: str) -> tuple[np.ndarray, Scene]:
    """A thing of 13 to 16 pixels in the middle of one half of the image; the other half is empty."""
    canvas, background = _background(rng)
    _paste_small(rng, canvas, sprites[index], SIDES[side])
    return np.asarray(canvas), Scene((index,), side, background)


def half_centres(relation: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the first and the second thing stand, (x, y) in pixels."""
    left, right, top, bottom = SIDES.values()
    return {
        "left of": (left, right),
        "right of": (right, left),
        "above": (top, bottom),
        "below": (bottom, top),
    }[relation]


def centres(scene: Scene) -> tuple[tuple[int, int], ...]:
    """Where the small things of a scene stand, (x, y) in pixels; none for a thing that fills the image."""
    if len(scene.shown) == 2:
        return half_centres(scene.relation)
    return (SIDES[scene.relation],) if scene.relation else ()


def as_tensor(pixels: np.ndarray) -> Tensor:
    """[N, 3, H, W] float32 in -1..1 of [N, H, W, 3] uint8."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def caption(rng: np.random.Generator, scene: Scene, habits: Habits = WORDY) -> str:
    """One of the many ways to say what a picture shows."""
    nouns = [_noun(rng, things()[index], habits) for index in scene.shown]
    if len(nouns) == 1 and not scene.relation and rng.random() < 0.5:
        text = str(rng.choice(TEMPLATES)).format(nouns[0])
    else:
        text = str(rng.choice(FRAMES)).format(_phrase(rng, scene, nouns, habits))
    return f"{text} on a {scene.background}" if rng.random() < habits.background else text


def _phrase(rng: np.random.Generator, scene: Scene, nouns: list[str], habits: Habits) -> str:
    words = [noun if rng.random() < habits.bare else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns]
    if len(words) == 1:
        return f"{words[0]} {scene.relation}".strip()
    return f"{words[0]} {'and' if rng.random() < habits.conjunction else scene.relation} {words[1]}"


def _noun(rng: np.random.Generator, thing: Thing, habits: Habits) -> str:
    word = thing.kind if thing.kind and rng.random() < habits.kind else thing.name
    if rng.random() < habits.nonsense:
        letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), int(rng.integers(3, 8)))
        word = f"{''.join(letters)} {word}"
    return word


def _paste_small(rng: np.random.Generator, canvas: Image.Image, looks: np.ndarray, centre: tuple[int, int]) -> None:
    size = int(rng.integers(13, 17))
    corner = np.array(centre) - size / 2 + rng.uniform(-0.7, 0.7, 2)
    _paste(rng, canvas, looks, size, np.clip(corner.round(), 0, SIZE - size))


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
