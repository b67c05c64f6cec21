"""How well the base draws what it was taught: recognition by the identity network, and a sheet to look at."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from .catalogue import learned
from .identity import halves, load_trained_identity
from .pictures import RELATIONS, SIZE, caption
from .pool import load_pool

STEPS, GUIDANCE = 25, 4.0
PAIRS = 400
SHEET = 32
_BATCH = 100


def evaluate(pipeline: StableDiffusionPipeline, work: Path) -> dict:
    """Top-1 recognition among all learned names, for one thing and for two; writes `quality.json` and `sheet.png`."""
    names = [thing.name for thing in learned()]
    network = load_trained_identity(work)
    singles = _generate(pipeline, [f"a photo of a {name}" for name in names])
    hits = _recognized(network, singles, len(names)) == torch.arange(len(names))
    rng = np.random.default_rng(4)
    pairs = [(*rng.choice(len(names), 2, replace=False), str(rng.choice(RELATIONS))) for _ in range(PAIRS)]
    pictures = _generate(pipeline, [f"a {names[i]} {relation} a {names[j]}" for i, j, relation in pairs])
    found = []
    for picture, (i, j, relation) in zip(pictures, pairs, strict=True):
        parts = torch.cat(halves(picture[None], relation))
        found.append(_recognized(network, parts, len(names)) == torch.tensor([int(i), int(j)]))
    found = torch.stack(found)
    quality = {
        "names": len(names),
        "one thing": round(hits.float().mean().item(), 3),
        "two things, each": round(found.float().mean().item(), 3),
        "two things, both": round(found.all(1).float().mean().item(), 3),
        "not recognized": [name for name, hit in zip(names, hits, strict=True) if not hit],
    }
    (work / "quality.json").write_text(json.dumps(quality, indent=1), "utf-8")
    draw_sheet(pipeline, work)
    return quality


def draw_sheet(pipeline: StableDiffusionPipeline, work: Path) -> None:
    """`sheet.png`: training pictures above, what the base draws for a caption of theirs below."""
    pixels, scenes = load_pool(work)
    captions = [caption(np.random.default_rng([5, i]), scenes[i]) for i in range(SHEET)]
    made = ((_generate(pipeline, captions) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    cell, columns = 128, 8
    rows = SHEET // columns
    sheet = Image.new("RGB", (columns * cell, rows * (2 * cell + 28)), "white")
    pen = ImageDraw.Draw(sheet)
    for i in range(SHEET):
        x, y = i % columns * cell, i // columns * (2 * cell + 28)
        for row, picture in enumerate((pixels[i], made[i])):
            sheet.paste(Image.fromarray(picture).resize((cell - 4, cell - 4)), (x + 2, y + row * cell + 2))
        words = captions[i]
        pen.text((x + 3, y + 2 * cell), f"{words[:21]}\n{words[21:42]}", fill="black")
    sheet.save(work / "sheet.png", optimize=True)


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
        made.append(result.images * 2 - 1)
    return torch.cat(made)


def _recognized(network, pictures: Tensor, names: int) -> Tensor:
    return network.similarities(network(pictures))[:, :names].argmax(1)
