"""Several concepts in one image of the mini base: the sum, own words, regions, and ComfyUI's area conditioning.

    python -m tests.benchmarks.regions --bank DIR --out DIR [--images 16] [--way NAME ...]

The bank holds the first 16 of the mini base's concepts, as `tests.benchmarks.comparison` trains them.  Writes
`regions.json` (figures that are there are not measured again) and `regions.png`.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from seqlora_core.bank import Bank
from seqlora_core.cli.options import count
from seqlora_core.composition.concatenation import compose
from seqlora_core.composition.confined_sampling import confine_on, generate_confined
from seqlora_core.composition.confinement import Confinement
from seqlora_core.composition.regions import DEFAULT_STRENGTH, Box, Region
from seqlora_core.composition.selection import select
from seqlora_core.data.images import to_tensor
from seqlora_core.data.words import NO_WORDS, Words
from seqlora_core.mini import mini_concepts
from seqlora_core.mini.identity import load_identity
from seqlora_core.model.adapters import Adapter, attach
from seqlora_core.model.base import Base, load_base
from seqlora_core.model.sampling import SamplingSettings, generate
from seqlora_core.model.sd15 import find_layers
from tests.mini.catalogue import learned

SAMPLER_STEPS, GUIDANCE = 16, 4.0
NAMES = 48  # among which the nearest one is looked for
HALVES = (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))
THIRDS = tuple(Box(i / 3, 0, (i + 1) / 3, 1) for i in range(3))
QUARTERS = tuple(Box(x, y, x + 0.5, y + 0.5) for y in (0, 0.5) for x in (0, 0.5))


@dataclass(frozen=True)
class Layout:
    """Where the things of a prompt stand, and how it names them."""

    boxes: tuple[Box, ...]
    prompt: str


LAYOUTS = {
    2: Layout(HALVES, "a {} left of a {}"),
    3: Layout(THIRDS, "a {}, a {} and a {}"),
    4: Layout(QUARTERS, "a {}, a {}, a {} and a {}"),
}
# Concepts by their place in the list; of the pairs, the first six look alike.
GROUPS = {
    "pairs, look-alikes": ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (12, 13)),
    "pairs, others": ((0, 8), (1, 15), (2, 6), (3, 11), (5, 14), (7, 10)),
    "triples": ((0, 2, 8), (1, 4, 12), (3, 6, 10), (5, 9, 14), (7, 11, 15), (0, 6, 13)),
    "quadruples": ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
}


@dataclass(frozen=True)
class Shown:
    """What an image shows: the words for each thing in prompts, and its references' embeddings [n, 128]."""

    subjects: Sequence[str]
    references: Sequence[Tensor]


@dataclass(frozen=True)
class Scene:
    """One image to draw: concepts of the bank, or names of the base's own where `concepts` is empty."""

    base: Base
    bank: Bank
    concepts: Sequence[str]
    shown: Shown
    settings: SamplingSettings

    @property
    def layout(self) -> Layout:
        return LAYOUTS[len(self.shown.subjects)]

    @property
    def prompt(self) -> str:
        return self.layout.prompt.format(*self.shown.subjects)

    @property
    def words(self) -> Words:
        return self.bank.words() if self.concepts else NO_WORDS

    def adapters(self) -> dict[str, Adapter]:
        return compose(self.bank, [(name, 1.0) for name in self.concepts])

    def confinement(self, regions: Sequence[Region] = ()) -> Confinement:
        parts = select(self.bank, [(name, 1.0) for name in self.concepts])
        return confine_on(self.base, self.prompt, parts, self.settings, self.words, regions)

    def regions(self, strength: float, start: float, whole: bool) -> list[Region]:
        """One region per thing; with `whole` its prompt is the whole prompt, else "photo of a ..."."""
        concepts = [((name, 1.0),) for name in self.concepts]
        return [
            Region(self.prompt if whole else f"photo of a {subject}", box, concepts=own, strength=strength, start=start)
            for box, subject, own in zip(self.layout.boxes, self.shown.subjects, concepts, strict=True)
        ]


def one_sum(scene: Scene) -> list[Image.Image]:
    adapters = scene.adapters() if scene.concepts else None
    return generate(scene.base, scene.prompt, adapters, scene.settings, scene.words)


def sum_of_all(scene: Scene) -> list[Image.Image]:
    """The sum of all concepts of the bank, of which the prompt names some."""
    adapters = compose(scene.bank, [(concept.name, 1.0) for concept in scene.bank.concepts])
    return generate(scene.base, scene.prompt, adapters, scene.settings, scene.words)


def own_words(scene: Scene) -> list[Image.Image]:
    return generate_confined(scene.base, scene.confinement(), scene.settings, scene.words)


def in_regions(
    strength: float = DEFAULT_STRENGTH, start: float = 0.0, whole: bool = False
) -> Callable[[Scene], list[Image.Image]]:
    def draw(scene: Scene) -> list[Image.Image]:
        confinement = scene.confinement(scene.regions(strength, start, whole))
        return generate_confined(scene.base, confinement, scene.settings, scene.words)

    return draw


def regional_prompts(scene: Scene) -> list[Image.Image]:
    """Regions with prompts of their own, and all concepts everywhere."""
    confinement = scene.confinement(scene.regions(DEFAULT_STRENGTH, 0.0, False))
    everywhere = dataclasses.replace(
        confinement,
        text=torch.ones_like(confinement.text),
        everywhere=torch.ones_like(confinement.everywhere),
        regional=torch.zeros_like(confinement.regional),
    )
    return generate_confined(scene.base, everywhere, scene.settings, scene.words)


@torch.no_grad()
def stock_areas(scene: Scene) -> list[Image.Image]:
    """ComfyUI's Conditioning (Set Mask) and Combine with all LoRAs chained: the mean of the predictions of all prompts
    that cover a place, each from an evaluation of its own."""
    base, settings, pipeline = scene.base, scene.settings, scene.base.pipeline
    texts = [settings.negative_prompt, scene.prompt, *(f"photo of a {subject}" for subject in scene.shown.subjects)]
    encoded = [base.text_encoder.encode_weighted(text, scene.words)[None] for text in texts]
    side = settings.size // base.vae_scale_factor
    whole = Region("everything", Box(0, 0, 1, 1))
    areas = [whole, *(Region("one", box) for box in scene.layout.boxes)]
    masks = torch.stack([area.mask(side, side) for area in areas])[:, None, None].float()  # [1 + R, 1, 1, h, w]
    seeds = [torch.Generator().manual_seed(settings.seed + image) for image in range(settings.count)]
    latents = torch.cat([torch.randn(1, 4, side, side, generator=seed) for seed in seeds])
    pipeline.scheduler.set_timesteps(settings.steps)
    with attach(find_layers(pipeline.unet), scene.adapters()):
        for timestep in pipeline.scheduler.timesteps:
            predicted = torch.stack(
                [pipeline.unet(latents, timestep, text.expand(len(latents), -1, -1)).sample for text in encoded]
            )
            positive = (masks * predicted[1:]).sum(0) / masks.sum(0)
            noise = predicted[0] + settings.guidance * (positive - predicted[0])
            latents = pipeline.scheduler.step(noise, timestep, latents).prev_sample
    pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return pipeline.image_processor.postprocess(pixels)


WAYS = {
    "sum": one_sum,
    "sum, all 16 loaded": sum_of_all,
    "own words": own_words,
    "regional prompts, sum": regional_prompts,
    "regions": in_regions(),
    "ComfyUI's areas": stock_areas,
}
# Where the defaults of regions come from.
NEIGHBOURS = {
    "regions at 1/2": in_regions(strength=0.5),
    "regions at 1": in_regions(strength=1.0),
    "regions at 1, from a quarter": in_regions(strength=1.0, start=0.25),
    "regions, whole prompt": in_regions(whole=True),
    "regions at 1, whole prompt": in_regions(strength=1.0, whole=True),
}


class Measurement:
    """Draws and scores every group of concepts in a bank.

    Args:
        cache: the file of figures, by way and group; those that it holds are not measured again.
    """

    def __init__(self, base: Base, bank: Bank, cache: Path, images: int) -> None:
        self.base, self.bank, self.cache = base, bank, cache
        self.figures = json.loads(cache.read_text("utf-8")) if cache.is_file() else {}
        self.settings = SamplingSettings(SAMPLER_STEPS, base.native_size, GUIDANCE, count=images)
        self.network = load_identity()
        self.names = [concept.name for concept in bank.concepts]
        concepts = mini_concepts()
        self.references = {own.name: self._embed(to_tensor(own.references)) for own in concepts}
        self.centres = torch.stack([self.references[own.name].mean(0) for own in concepts])
        self.places = {own.name: place for place, own in enumerate(concepts)}

    def measure(self, way: str, draw: Callable[[Scene], list[Image.Image]]) -> None:
        """All groups of concepts."""
        for kind, groups in GROUPS.items():
            if kind not in self.figures.setdefault(way, {}):
                scenes = [self.scene([self.names[place] for place in group]) for group in groups]
                wanted = [[self.places[name] for name in scene.concepts] for scene in scenes]
                self._record(way, kind, self._score(scenes, wanted, self.centres, draw))

    def measure_own_names(self) -> None:
        """What the base does with two names of its own, as many and as alike: what no concept can exceed."""
        things = learned()
        alike = [pair for pair in combinations(range(len(things)), 2) if _alike(*(things[place] for place in pair))]
        generator = torch.Generator().manual_seed(0)
        chosen = [alike[place] for place in torch.randperm(len(alike), generator=generator)[:6]]
        others = torch.randperm(len(things), generator=generator)[:12].view(6, 2).tolist()
        known = [*dict.fromkeys(place for pair in (*chosen, *others) for place in pair)]
        more = [place for place in torch.randperm(len(things), generator=generator).tolist() if place not in known]
        known = [*known, *more][:NAMES]
        centres = functional.normalize(self.network.centres, dim=1)[known]
        for kind, pairs in (("pairs, look-alikes", chosen), ("pairs, others", others)):
            if kind in self.figures.setdefault("names of the base", {}):
                continue
            wanted = [[known.index(place) for place in pair] for pair in pairs]
            scenes = [
                self._scene((), Shown([things[p].name for p in pair], [centres[[w]] for w in own]))
                for pair, own in zip(pairs, wanted, strict=True)
            ]
            self._record("names of the base", kind, self._score(scenes, wanted, centres, one_sum))

    def scene(self, names: Sequence[str], images: int | None = None) -> Scene:
        """The scene of some concepts."""
        subjects = [self.bank.concept(name).subject for name in names]
        scene = self._scene(names, Shown(subjects, [self.references[name] for name in names]))
        return (
            scene
            if images is None
            else dataclasses.replace(scene, settings=dataclasses.replace(scene.settings, count=images))
        )

    def _scene(self, names: Sequence[str], shown: Shown) -> Scene:
        return Scene(self.base, self.bank, names, shown, self.settings)

    def _score(
        self,
        scenes: Sequence[Scene],
        wanted: Sequence[Sequence[int]],
        centres: Tensor,
        draw: Callable[[Scene], list[Image.Image]],
    ) -> dict[str, float]:
        """Means over all boxes.

        Args:
            wanted: of each scene, the places of its things in `centres`, among which the nearest is looked for.
        """
        boxes, rows, seconds = [], 0, 0.0

        def count(unet: object, inputs: tuple[Tensor, ...]) -> None:
            nonlocal rows
            rows += len(inputs[0])

        hook = self.base.pipeline.unet.register_forward_pre_hook(count)
        try:
            for scene, own in zip(scenes, wanted, strict=True):
                started = time.perf_counter()
                pixels = to_tensor(draw(scene))
                seconds += time.perf_counter() - started
                boxes += self._score_boxes(pixels, scene, own, centres)
        finally:
            hook.remove()
        images = len(scenes) * self.settings.count
        means = {name: round(fmean(box[name] for box in boxes), 4) for name in boxes[0]}
        return {**means, "evaluations": rows / images, "seconds": round(seconds / images, 4)}

    def _score_boxes(self, pixels: Tensor, scene: Scene, own: Sequence[int], centres: Tensor) -> list[dict[str, float]]:
        scores = []
        for place, (box, target) in enumerate(zip(scene.layout.boxes, own, strict=True)):
            seen = self._embed(_cut(pixels, box))
            near = torch.stack([(seen @ reference.T).mean(1) for reference in scene.shown.references])  # [things, N]
            others = torch.cat([near[:place], near[place + 1 :]])
            scores.append(
                {
                    "identity": near[place].mean().item(),
                    "leak": others.mean().item(),
                    "nearer": (near[place] > others.amax(0)).float().mean().item(),
                    "right": ((seen @ centres.T).argmax(1) == target).float().mean().item(),
                }
            )
        return scores

    @torch.no_grad()
    def _embed(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)

    def _record(self, way: str, kind: str, figures: dict[str, float]) -> None:
        self.figures[way][kind] = figures
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        self.cache.write_text(json.dumps(self.figures, indent=1) + "\n", "utf-8")
        print(way, kind, figures, flush=True)


def _alike(first, second) -> bool:
    return bool(first.kind) and first.kind == second.kind


def _cut(pixels: Tensor, box: Box) -> Tensor:
    """The square in the middle of a box, as wide as its shorter side, as an image of its own."""
    height, width = pixels.shape[-2:]
    left, top, right, bottom = box.left * width, box.top * height, box.right * width, box.bottom * height
    reach = min(right - left, bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    part = pixels[..., round(y - reach) : round(y + reach), round(x - reach) : round(x + reach)]
    return functional.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)


def draw_figure(measurement: Measurement, path: Path) -> None:
    """Rows of groups, a column per way, two images each."""
    rows = [group for groups in GROUPS.values() for group in groups[:3]]
    cell, label, gap = 96, 220, 8
    picture = Image.new("RGB", (label + len(WAYS) * (2 * cell + gap), 24 + len(rows) * (cell + 4)), "white")
    pen = ImageDraw.Draw(picture)
    for column, way in enumerate(WAYS):
        pen.text((label + column * (2 * cell + gap), 6), way, fill="black")
    for row, group in enumerate(rows):
        names, top = [measurement.names[place] for place in group], 24 + row * (cell + 4)
        pen.text((4, top + cell // 2 - 6 * len(names)), "\n".join(names), fill="black")
        for column, draw in enumerate(WAYS.values()):
            for image, drawn in enumerate(draw(measurement.scene(names, images=2))):
                place = (label + column * (2 * cell + gap) + image * cell, top)
                picture.paste(drawn.resize((cell - 2, cell - 2), Image.Resampling.NEAREST), place)
    picture.quantize(256).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=count, default=16, metavar="N")
    parser.add_argument("--way", action="append", choices=[*WAYS, *NEIGHBOURS], default=[], metavar="NAME")
    parser.add_argument("--threads", type=count, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(
        load_base("mini", "cpu"), Bank.open(arguments.bank), arguments.out / "regions.json", arguments.images
    )
    ways = {**WAYS, **NEIGHBOURS}
    if not arguments.way:
        measurement.measure_own_names()
    for way in arguments.way or ways:
        measurement.measure(way, ways[way])
    if not arguments.way:
        draw_figure(measurement, arguments.out / "regions.png")


if __name__ == "__main__":
    main()
