"""Region and Compose Regions."""

import dataclasses
from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ..seqlora_core.bank import Bank
from ..seqlora_core.composition.confinement import Confinement, confine_rows, texts_of
from ..seqlora_core.composition.regions import DEFAULT_STRENGTH, Box, Region
from ..seqlora_core.composition.selection import (
    SelectedConcept,
    check_words_selected,
    describe_missing_concepts,
    parse_selections,
    select,
    trigger_words,
)
from ..seqlora_core.errors import UserError
from ..seqlora_core.model.sd15 import SD15
from .bank import BankType, clip_for
from .host import CLIP, ModelPatcher, confined, interface, texts
from .host import model as host_model
from .host.prompt import model_file
from .host.regional_texts import RegionalTexts

RegionsType = io.Custom("SEQLORA_REGIONS")
_EDGES = {"left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}
_NEGATIVE = 0  # the sides of a text
_POSITIVE = 1


def _share(name: str, default: float, tooltip: str) -> io.Input:
    return interface.advanced(
        io.Float.Input, name, default=default, min=0.0, max=1.0, step=0.01, round=False, tooltip=tooltip
    )


def _edge(name: str, default: float) -> io.Input:
    """An edge may lie beyond the canvas, where it is cut and reported."""
    side = "left" if name in ("left", "right") else "top"
    tooltip = f"The box's {name} edge, as a fraction of the canvas from its {side}."
    return io.Float.Input(name, default=default, min=-8.0, max=8.0, step=0.01, round=False, tooltip=tooltip)


class RegionNode(io.ComfyNode):
    """One area of the image with a prompt of its own, behind the regions before it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRARegion",
            display_name="Region",
            search_aliases=["regional prompt", "area prompt", "attention couple", "lora mask"],
            description="Gives a box or a mask of the image a prompt and concepts of its own, for Compose Regions.",
            inputs=[
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the area shows. The concepts act there whose words this prompt names.",
                ),
                *(_edge(name, default) for name, default in _EDGES.items()),
                _share(
                    "strength",
                    round(DEFAULT_STRENGTH, 2),
                    "Share of this prompt in the area; the rest is the global prompt's.",
                ),
                _share("start", 0.0, "Share of the sampling after which the region begins to act."),
                _share("end", 1.0, "Share of the sampling after which the region no longer acts."),
                _share("feather", 0.0, "Width of the transition at the box's edges, as a fraction of the canvas."),
                interface.advanced(
                    io.String.Input,
                    "negative",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the area should not show; if empty, the global negative prompt.",
                ),
                interface.advanced(
                    io.String.Input,
                    "concepts",
                    default="",
                    optional=True,
                    tooltip="The concepts that act in the area, each with an optional strength: dog:0.8, cat. Leave it "
                    "empty for those whose words the prompt names.",
                ),
                RegionsType.Input("regions", optional=True, tooltip="The regions so far, from another Region."),
                io.Mask.Input("mask", optional=True, tooltip="The area, in white, instead of the box; of any size."),
                interface.bounding_box(
                    "bounding_box", "The box in px of the canvas, instead of the four edges, from a detector or editor."
                ),
                *(
                    interface.advanced(
                        io.Int.Input,
                        f"canvas_{side}",
                        default=SD15.native_size,
                        min=8,
                        max=16384,
                        optional=True,
                        tooltip=f"The {side} in px of the canvas that bounding_box lies on; without it, not used.",
                    )
                    for side in ("width", "height")
                ),
            ],
            outputs=[
                RegionsType.Output(
                    "regions_out", display_name="regions", tooltip="For Compose Regions, or for another Region."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        prompt: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        strength: float,
        start: float,
        end: float,
        feather: float,
        negative: str = "",
        concepts: str = "",
        regions: Sequence[Region] = (),
        mask: Tensor | None = None,
        bounding_box: dict | list | None = None,
        canvas_width: int = SD15.native_size,
        canvas_height: int = SD15.native_size,
    ) -> io.NodeOutput:
        area: Box | Tensor = Box(left, top, right, bottom)
        if mask is not None:
            area = _one_mask(mask)
        elif bounding_box is not None:
            area = _box_of(bounding_box, canvas_width, canvas_height)
        region = Region(
            prompt,
            area,
            negative=negative if negative.strip() else None,
            concepts=tuple(parse_selections(concepts)) or None,
            strength=strength,
            start=start,
            end=end,
            feather=feather,
        )
        return io.NodeOutput((*regions, region))


def _one_mask(mask: Tensor) -> Tensor:
    """A MASK of one image as [H, W]."""
    if mask.ndim == 3 and len(mask) != 1:
        raise UserError(f"The input mask has {len(mask)} masks: connect one, and a Region for each further one.")
    return mask[0] if mask.ndim == 3 else mask


def _box_of(given: dict | list, width: int, height: int) -> Box:
    """The box of a BOUNDING_BOX, which some nodes put into a list per image.

    Args:
        width: of the canvas, in px; likewise `height`.
    """
    boxes = [given]
    while any(isinstance(box, list) for box in boxes):
        boxes = [box for own in boxes for box in (own if isinstance(own, list) else [own])]
    if len(boxes) != 1:
        raise UserError(
            f"The input bounding_box has {len(boxes)} boxes: connect one, and a Region for each further one."
        )
    x, y, wide, high = (boxes[0][name] for name in ("x", "y", "width", "height"))
    return Box(x / width, y / height, (x + wide) / width, (y + high) / height)


class ComposeRegions(io.ComfyNode):
    """Confines concepts to their own words and to regions, and encodes the prompts for it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return interface.schema(
            node_id="SeqLoRAComposeRegions",
            display_name="Compose Regions",
            search_aliases=["regional prompt", "regional lora", "attention couple", "two characters", "area"],
            description="Draws several concepts in one image, each in its own region or on its own word in the prompt.",
            inputs=[
                io.Model.Input("model", tooltip="The base model of the bank; it may already have other LoRAs."),
                BankType.Input("bank", tooltip="From Basis Bank Loader or SeqLoRA Train Concept."),
                io.Clip.Input("clip", tooltip="The base model's CLIP, which encodes all prompts."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the whole image shows. Concepts act in it on their own words only.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="What the image should not show."),
                RegionsType.Input(
                    "regions", optional=True, tooltip="From Region; without any, concepts act on their own words."
                ),
                io.String.Input(
                    "concepts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Names, each with an optional strength, separated by commas or new lines: dog:1, cat:0.8. "
                    "Leave it empty to use all concepts.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model_out", display_name="model", tooltip="The model, for this node's positive and negative."
                ),
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt and the regions'."),
                io.Conditioning.Output("negative_out", display_name="negative", tooltip="What not to show."),
                io.String.Output(
                    "trigger_words", display_name="trigger words", tooltip="The words to use in the prompts."
                ),
                io.String.Output("report", display_name="report", tooltip="What acts where."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        bank: Bank,
        clip: CLIP,
        prompt: str,
        negative: str,
        regions: Sequence[Region] = (),
        concepts: str = "",
    ) -> io.NodeOutput:
        bank.refresh()
        host_model.check_model(model)
        confined.check_not_confined(model)
        names = [concept.name for concept in bank.concepts]
        selection = parse_selections(concepts, names) or [(name, 1.0) for name in names]
        regions = [_of_bank(region, bank) for region in regions]
        check_words_selected(bank, selection, [region.prompt for region in regions])
        texts.check_texts(clip, "")
        bank.check_base(host_model.identify(model, model_file(cls))[0])
        chosen = [bank.concept(name) for name, _ in selection]
        host_model.check_not_attached(model, chosen)
        encoding = clip_for(bank, bank.concepts, clip, "Compose Regions")
        parts = select(bank, selection)
        pairs = texts_of((negative, prompt), regions)
        encoded = RegionalTexts(encoding, pairs, [part.subject for part in parts])
        confinement = _confine(parts, pairs, encoded.rows(), regions, all_concepts=not concepts.strip())
        acting = {part.name for part in confinement.parts}
        chosen = [concept for concept in chosen if concept.name in acting]
        identity = confined.identify(confinement, chosen)
        patched = confined.confine_model(
            model,
            confinement,
            chosen,
            identity,
            "connect positive and negative of the Compose Regions node that the model comes from",
        )
        sides = [encoded.conditioning(side, confinement, identity) for side in (_POSITIVE, _NEGATIVE)]
        notes = describe_missing_concepts(bank, selection, [prompt, negative])
        words, report = trigger_words(bank, selection), "\n".join([*_describe(confinement), *notes])
        return io.NodeOutput(patched, *sides, words, report, ui=interface.node_text(cls, f"{words}\n{report}"))


def _of_bank(region: Region, bank: Bank) -> Region:
    """A region whose concepts have the names that the bank gives them.

    Raises:
        UserError: the bank has no such concept.
    """
    if region.concepts is None:
        return region
    named = tuple((bank.concept(name).name, strength) for name, strength in region.concepts)
    return dataclasses.replace(region, concepts=named)


def _confine(
    parts: Sequence[SelectedConcept],
    pairs: Sequence[tuple[str, str]],
    rows: Tensor,
    regions: Sequence[Region],
    all_concepts: bool,
) -> Confinement:
    """Confine concepts to regions and words; of all concepts of a bank, only those that act are kept."""
    if all_concepts:
        named = rows.flatten(0, 2).amax(0) > 0
        in_regions = {name for region in regions for name, _ in region.concepts or ()}
        kept = [i for i, part in enumerate(parts) if named[i] or part.name in in_regions]
        parts, rows = [parts[i] for i in kept], rows[..., kept]
    return confine_rows(parts, pairs, rows, regions)


def _describe(confinement: Confinement) -> list[str]:
    """What acts where, one line per text."""
    lines = []
    for number, pair in enumerate(confinement.texts):
        acting = confinement.text[number].abs().amax((0, 1)) > 0
        names = [part.name for part, acts in zip(confinement.parts, acting.tolist(), strict=True) if acts]
        where = f"region {number} ({pair[_POSITIVE].strip()})" if number else "own words of the prompt"
        lines.append(f"{where}: {', '.join(names) or 'no concept'}")
    return [*lines, *confinement.notes]
