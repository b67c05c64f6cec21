"""The training pictures, made once and kept on disk: picture number i depends on the seed and i alone."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .catalogue import learned, sprites
from .pictures import SIZE, Draw, Scene, arranged_scene, random_scene

CHUNK = 2_000


@dataclass(frozen=True)
class Pool:
    """Pictures of one sort.

    Attributes:
        name: what their files in the working folder are called.
    """

    name: str
    pictures: int
    seed: int
    draw: Draw


FIRST = Pool("pool", 80_000, 1, random_scene)
ARRANGED = Pool("arranged", 80_000, 6, arranged_scene)


def make_pool(pool: Pool, packages: Path, work: Path) -> None:
    """Writes `<name>.npy` [pictures, 32, 32, 3] uint8 and `<name>.json`, their scenes."""
    looks = sprites(packages)
    pixels = np.lib.format.open_memmap(work / f"{pool.name}.npy", "w+", np.uint8, (pool.pictures, SIZE, SIZE, 3))
    scenes: list[dict] = []
    starts = range(0, pool.pictures, CHUNK)
    with ProcessPoolExecutor(2) as workers:
        chunks = workers.map(_chunk, [pool] * len(starts), starts, [looks] * len(starts))
        for start, (pictures, chunk) in zip(starts, chunks, strict=True):
            pixels[start : start + CHUNK] = pictures
            scenes += [asdict(scene) for scene in chunk]
    pixels.flush()
    (work / f"{pool.name}.json").write_text(json.dumps(scenes), "utf-8")


def load_pool(pool: Pool, work: Path) -> tuple[np.ndarray, list[Scene]]:
    """The pictures, mapped from disk, and what they show."""
    scenes = json.loads((work / f"{pool.name}.json").read_text("utf-8"))
    pixels = np.load(work / f"{pool.name}.npy", mmap_mode="r")
    return pixels, [Scene(tuple(scene["shown"]), scene["relation"], scene["background"]) for scene in scenes]


def _chunk(pool: Pool, start: int, looks: np.ndarray) -> tuple[np.ndarray, list[Scene]]:
    made = [pool.draw(np.random.default_rng([pool.seed, start + i]), looks, len(learned())) for i in range(CHUNK)]
    return np.array([pixels for pixels, _ in made]), [scene for _, scene in made]
