"""The training pictures, made once and kept on disk: picture number i depends on the seed and i alone."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .catalogue import learned, sprites
from .pictures import SIZE, Scene, random_scene

PICTURES = 80_000
CHUNK = 2_000


def make_pool(packages: Path, work: Path) -> None:
    """Writes `pool.npy` [PICTURES, 32, 32, 3] uint8 and `pool.json`, their scenes."""
    looks = sprites(packages)
    path = work / "pool.npy"
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (PICTURES, SIZE, SIZE, 3))
    scenes: list[dict] = []
    with ProcessPoolExecutor(2) as workers:
        starts = range(0, PICTURES, CHUNK)
        for start, (pictures, chunk) in zip(starts, workers.map(_chunk, starts, [looks] * len(starts)), strict=True):
            pixels[start : start + CHUNK] = pictures
            scenes += [asdict(scene) for scene in chunk]
    pixels.flush()
    (work / "pool.json").write_text(json.dumps(scenes), "utf-8")


def load_pool(work: Path) -> tuple[np.ndarray, list[Scene]]:
    """The pictures, mapped from disk, and what they show."""
    scenes = json.loads((work / "pool.json").read_text("utf-8"))
    pixels = np.load(work / "pool.npy", mmap_mode="r")
    return pixels, [Scene(tuple(scene["shown"]), scene["relation"], scene["background"]) for scene in scenes]


def _chunk(start: int, looks: np.ndarray) -> tuple[np.ndarray, list[Scene]]:
    made = [random_scene(np.random.default_rng([1, start + i]), looks, len(learned())) for i in range(CHUNK)]
    return np.array([pixels for pixels, _ in made]), [scene for _, scene in made]
