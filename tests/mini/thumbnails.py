"""The thumbnails of the example workflows, from images of the mini base; 5 is a drawing, as it needs a ControlNet.

python -m seqlora_core demo --out demo
python -m tests.mini.thumbnails --bank demo/bank [--out workflows]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from seqlora_core.bank import Bank
from seqlora_core.composition.concatenation import compose
from seqlora_core.composition.confined_sampling import confine_on, generate_confined
from seqlora_core.composition.regions import Box, Region
from seqlora_core.composition.selection import select
from seqlora_core.mini import mini_concepts
from seqlora_core.model.base import Base, load_base
from seqlora_core.model.sampling import SamplingSettings, generate

SIZE = 512  # px
BACKGROUND, PANEL, TEXT, FAINT = "#15171e", "#2a2d3a", "#e8e8ee", "#8a8d9a"
LEFT, RIGHT = "#4a90e2", "#e2843a"
GUIDANCE, STEPS, IMAGES = 4.0, 25, 8


class Sheet:
    """One thumbnail in the making."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    def show(self, image: Image.Image, left: int, top: int, width: int, height: int | None = None) -> None:
        """An image, scaled up, with a frame."""
        height = height or width
        self.image.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        self.draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), outline=TEXT, width=3)

    def say(self, text: str, x: int, y: int, size: int = 22, anchor: str = "mm", colour: str = TEXT) -> None:
        self.draw.text((x, y), text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)

    def arrow(self, x: int, top: int, bottom: int) -> None:
        self.draw.line((x, top, x, bottom - 10), fill=FAINT, width=5)
        self.draw.polygon((x - 11, bottom - 12, x + 11, bottom - 12, x, bottom), fill=FAINT)

    def pill(self, text: str, box: tuple[int, int, int, int], colour: str = PANEL, size: int = 22) -> None:
        self.draw.rounded_rectangle(box, 10, fill=colour)
        self.say(text, (box[0] + box[2]) // 2, (box[1] + box[3]) // 2, size)

    def frames(self, left: int, top: int, width: int, height: int) -> None:
        """The boxes of two regions, side by side."""
        half = width // 2
        for x, colour in ((left, LEFT), (left + half, RIGHT)):
            self.draw.rectangle((x + 5, top + 5, x + half - 6, top + height - 6), outline=colour, width=5)

    def save(self, file: Path) -> None:
        self.image.save(file, quality=88, optimize=True)


class Artist:
    """Draws with the concepts of a bank."""

    def __init__(self, base: Base, bank: Bank) -> None:
        self.base, self.bank = base, bank
        self.settings = SamplingSettings(STEPS, base.native_size, GUIDANCE, 0, count=IMAGES)
        self.references = {concept.name: concept.references for concept in mini_concepts()}

    def subject(self, name: str) -> str:
        return self.bank.concept(name).subject

    def plain(self, class_word: str) -> list[Image.Image]:
        """What the base alone takes for a class."""
        return generate(self.base, f"a photo of a {class_word}", None, self.settings)

    def alone(self, name: str) -> list[Image.Image]:
        adapters = compose(self.bank, [(name, 1.0)])
        return generate(self.base, f"a photo of a {self.subject(name)}", adapters, self.settings, self.bank.words())

    def together(self, selection: Sequence[tuple[str, float]]) -> list[Image.Image]:
        prompt = "a {} left of a {}".format(*(self.subject(name) for name, _ in selection))
        return generate(self.base, prompt, compose(self.bank, selection), self.settings, self.bank.words())

    def in_regions(self, left: str, right: str) -> list[Image.Image]:
        names = (left, right)
        prompt = "a {} left of a {}".format(*map(self.subject, names))
        boxes = (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1))
        regions = [Region(f"a {self.subject(name)}", box) for name, box in zip(names, boxes, strict=True)]
        parts = select(self.bank, [(name, 1.0) for name in names])
        words = self.bank.words()
        confinement = confine_on(self.base, prompt, parts, self.settings, words, regions)
        return generate_confined(self.base, confinement, self.settings, words)


def train_one(artist: Artist) -> Sheet:
    sheet = Sheet()
    for number, image in enumerate(artist.references["taxi"][:3]):
        sheet.show(image, 40 + 152 * number, 36, 128)
    sheet.arrow(256, 182, 240)
    for left, image, label in ((62, artist.plain("car")[5], "without"), (282, artist.alone("taxi")[3], "with it")):
        sheet.show(image, left, 256, 168)
        sheet.say(label, left + 84, 462, 26)
    return sheet


def train_three(artist: Artist) -> Sheet:
    sheet = Sheet()
    for number, (name, shown) in enumerate((("guide dog", 1), ("taxi", 3), ("parrot", 3))):
        top = 30 + 160 * number
        for place, image in enumerate(artist.references[name][:2]):
            sheet.show(image, 34 + 84 * place, top + 30, 72)
        sheet.draw.line((206, top + 66, 300, top + 66), fill=FAINT, width=5)
        sheet.draw.polygon((298, top + 55, 298, top + 77, 312, top + 66), fill=FAINT)
        sheet.say(str(number + 1), 252, top + 40, 26)
        sheet.show(artist.alone(name)[shown], 330, top, 140)
    return sheet


def choose(artist: Artist) -> Sheet:
    sheet = Sheet()
    rows = (("taxi", "1"), ("parrot", "0.8"), ("guide dog", "off"))
    for number, (name, strength) in enumerate(rows):
        top, colour = 24 + 66 * number, FAINT if strength == "off" else TEXT
        sheet.draw.rounded_rectangle((60, top, 452, top + 54), 12, fill=PANEL)
        image = artist.references[name][0]
        image = ImageOps.grayscale(image).convert("RGB") if strength == "off" else image
        sheet.image.paste(image.resize((42, 42), Image.Resampling.LANCZOS), (70, top + 6))
        sheet.say(name, 130, top + 27, 24, "lm", colour)
        sheet.say(strength, 432, top + 27, 24, "rm", colour)
    sheet.arrow(256, 226, 262)
    sheet.show(artist.together([("taxi", 1.0), ("parrot", 0.8)])[1], 146, 276, 220)
    return sheet


def two_subjects(artist: Artist) -> Sheet:
    sheet = Sheet()
    sheet.show(artist.in_regions("taxi", "parrot")[1], 76, 86, 360)
    sheet.frames(76, 86, 360, 360)
    sheet.pill("taxi", (96, 24, 246, 68), LEFT, 26)
    sheet.pill("parrot", (266, 24, 416, 68), RIGHT, 26)
    return sheet


def from_a_drawing(artist: Artist) -> Sheet:
    """Outlines of two reference images, and the regions around them."""
    sheet = Sheet()
    paper = Image.new("L", (400, 280), "white")
    for left, name in ((6, "taxi"), (202, "parrot")):
        image = artist.references[name][1]
        backdrop = Image.new("RGB", image.size, image.getpixel((0, 0)))
        subject = ImageOps.grayscale(ImageChops.difference(image, backdrop)).resize(
            (192, 192), Image.Resampling.BICUBIC
        )
        silhouette = subject.point(lambda value: 255 if value > 24 else 0).filter(ImageFilter.MedianFilter(9))
        outline = silhouette.filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(5))
        paper.paste("black", (left, 44), outline)
    sheet.show(paper, 56, 116, 400, 280)
    sheet.frames(56, 116, 400, 280)
    sheet.pill("taxi", (76, 54, 236, 98), LEFT, 26)
    sheet.pill("parrot", (276, 54, 436, 98), RIGHT, 26)
    sheet.pill("ControlNet", (166, 418, 346, 466))
    return sheet


def app(artist: Artist) -> Sheet:
    sheet = Sheet()
    sheet.show(artist.alone("parrot")[3], 232, 76, 250)
    for number, (label, value) in enumerate((("Bank", "pets"), ("Concepts", "parrot:1"), ("Scene", "photo"))):
        top = 76 + 84 * number
        sheet.say(label, 30, top + 8, 18, "lm", FAINT)
        sheet.pill(value, (26, top + 22, 202, top + 64), size=20)
    sheet.pill("Run", (26, 342, 202, 392), LEFT, 24)
    return sheet


THUMBNAILS = {
    "1-train-one": train_one,
    "2-train-three-and-compose": train_three,
    "3-compose-only": choose,
    "4-two-subjects-in-one-image": two_subjects,
    "5-two-subjects-from-a-drawing": from_a_drawing,
    "6-draw-your-subjects.app": app,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True, help="the bank that the command `demo` trains")
    parser.add_argument("--out", type=Path, default=Path("workflows"))
    args = parser.parse_args()
    artist = Artist(load_base("mini", "cpu"), Bank.open(args.bank))
    for name, make in THUMBNAILS.items():
        make(artist).save(args.out / f"{name}.jpg")


if __name__ == "__main__":
    main()
