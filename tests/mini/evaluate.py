"""How well the base draws what it was taught: recognition by the identity network, and sheets to look at."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from seqlora_core.mini.identity import IdentityNet

from .catalogue import learned, sprites
from .identity import focus, halves, load_trained_identity
from .pictures import RELATIONS, SIZE, Scene, as_tensor, caption, one_thing, two_things
from .pool import FIRST

STEPS, GUIDANCE = 25, 4.0
PAIRS = 400
SHEET = 32
PAIRS_SHEET = 24
_BATCH = 100


def evaluate(pipeline: StableDiffusionPipeline, packages: Path, work: Path) -> dict:
    """Top-1 recognition among all learned names, for one thing and for two, and after a round trip through the
    autoencoder; writes `quality.json` and `sheet.png`."""
    looks = sprites(packages)
    names = [thing.name for thing in learned()]
    network = load_trained_identity(work)
    singles = _generate(pipeline, [f"a photo of a {name}" for name in names])
    hits = _recognized(network, singles, len(names)) == torch.arange(len(names))
    pairs = _pairs(len(names))
    pictures = _generate(pipeline, [_prompt(*pair) for pair in pairs])
    found = []
    for picture, (i, j, relation) in zip(pictures, pairs, strict=True):
        parts = torch.cat(halves(picture[None], relation))
        found.append(_recognized(network, parts, len(names)) == torch.tensor([i, j]))
    found = torch.stack(found)
    rng = np.random.default_rng(6)
    alone = [one_thing(rng, looks, index) for index in range(len(names))]
    beside = [two_things(rng, looks, *pair) for pair in pairs]
    quality = {
        "names": len(names),
        "one thing": round(hits.float().mean().item(), 3),
        "two things, each": round(found.float().mean().item(), 3),
        "two things, both": round(found.all(1).float().mean().item(), 3),
        "kept by the autoencoder, one thing": _kept(pipeline.vae, network, alone, len(names)),
        "kept by the autoencoder, each of two": _kept(pipeline.vae, network, beside, len(names)),
        "not recognized": [name for name, hit in zip(names, hits, strict=True) if not hit],
    }
    (work / "quality.json").write_text(json.dumps(quality, indent=1), "utf-8")
    draw_sheet(pipeline, looks, work)
    return quality


def _pairs(names: int) -> list[tuple[int, int, str]]:
    """The two things and the relation of each prompt with two."""
    rng = np.random.default_rng(4)
    drawn = [(*rng.choice(names, 2, replace=False), rng.choice(RELATIONS)) for _ in range(PAIRS)]
    return [(int(i), int(j), str(relation)) for i, j, relation in drawn]


def _prompt(first: int, second: int, relation: str) -> str:
    return f"a {learned()[first].name} {relation} a {learned()[second].name}"


@torch.no_grad()
def _kept(vae: AutoencoderKL, network: IdentityNet, made: list[tuple[np.ndarray, Scene]], names: int) -> float:
    """Of the things that are recognized in training images, the share that still is after encoding and decoding."""
    pixels, scenes = as_tensor(np.array([picture for picture, _ in made])), [scene for _, scene in made]
    latents = [vae.encode(part.to(vae.device)).latent_dist.mean for part in pixels.split(_BATCH)]
    restored = torch.cat([vae.decode(part).sample.cpu() for part in latents])
    shown = torch.tensor([index for scene in scenes for index in scene.shown])
    before, after = (_recognized(network, focus(each, scenes), names) == shown for each in (pixels, restored))
    return round((before & after).sum().item() / before.sum().item(), 3)


def draw_sheet(pipeline: StableDiffusionPipeline, looks: np.ndarray, work: Path) -> None:
    """`sheet.png`: training images above, what the base draws for a caption of theirs below."""
    drawn = [FIRST.draw(np.random.default_rng([FIRST.seed, i]), looks, len(learned())) for i in range(SHEET)]
    captions = [caption(np.random.default_rng([5, i]), scene) for i, (_, scene) in enumerate(drawn)]
    made = _generate(pipeline, captions)
    _draw_rows([[pixels for pixels, _ in drawn], _as_pixels(made)], captions, 8).save(work / "sheet.png", optimize=True)


def draw_pairs(pipelines: Sequence[StableDiffusionPipeline], work: Path) -> None:
    """`pairs.png`: prompts with two things, and under each other what several bases draw for them."""
    prompts = [_prompt(*pair) for pair in _pairs(len(learned()))[:PAIRS_SHEET]]
    rows = [_as_pixels(_generate(pipeline, prompts)) for pipeline in pipelines]
    sheet = _draw_rows(rows, prompts, 8).quantize(256)  # half the bytes, and no difference to the eye
    sheet.save(work / "pairs.png", optimize=True)


def _draw_rows(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str], columns: int) -> Image.Image:
    """Under each other the images of one caption, and the caption."""
    cell, words = 128, 28
    height = len(rows) * cell + words
    sheet = Image.new("RGB", (columns * cell, -(-len(captions) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, text in enumerate(captions):
        x, y = i % columns * cell, i // columns * height
        for row, pictures in enumerate(rows):
            picture = Image.fromarray(pictures[i]).resize((cell - 4, cell - 4))
            sheet.paste(picture, (x + 2, y + row * cell + 2))
        pen.text((x + 3, y + height - words), f"{text[:21]}\n{text[21:42]}", fill="black")
    return sheet


def _as_pixels(pictures: Tensor) -> np.ndarray:
    return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _generate(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    """[N, 3, 32, 32] in -1..1; picture i from seed i."""
    pipeline.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(prompts), _BATCH):
        chunk = prompts[start : start + _BATCH]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
        result = pipeline(
            chunk,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=seeds,
            output_type="pt",
            height=SIZE,
            width=SIZE,
        )
        made.append(result.images.cpu() * 2 - 1)
    return torch.cat(made)


def _recognized(network: IdentityNet, pictures: Tensor, names: int) -> Tensor:
    return network.similarities(network(pictures))[:, :names].argmax(1)
