"""Region."""

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ..seqlora_core.composition.regions import DEFAULT_STRENGTH, Box, Region
from ..seqlora_core.composition.selection import parse_selections
from ..seqlora_core.errors import UserError
from ..seqlora_core.model.sd15 import SD15
from .host import interface

RegionsType = io.Custom("SEQLORA_REGIONS")
_EDGES = {"left": 0.0, "top": 0.0, "right": 0.5, "bottom": 1.0}


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
                    tooltip="What the area shows. The concepts act there whose words this prompt names. Leave it "
                    "empty to keep the prompt of the whole image there, and list concepts.",
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
    try:
        x, y, wide, high = (float(boxes[0][name]) for name in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"The input bounding_box is not a box with numbers for x, y, width and height, in px: {boxes[0]!r}."
        ) from None
    return Box(x / width, y / height, (x + wide) / width, (y + high) / height)
