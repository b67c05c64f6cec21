"""Options of `generate` that give regions of the image a prompt and concepts of their own."""

import argparse

from ..composition.regions import DEFAULT_STRENGTH, Region, parse_region
from ..errors import UserError
from .options import Options, share

_SETTINGS = {"strength": "--region-strength", "start": "--region-start", "end": "--region-end", "feather": "--feather"}


def add_regions(options: Options) -> None:
    """Add --region, which may be repeated, and the settings that all regions share."""
    options.add_argument(
        "--region",
        action="append",
        default=[],
        metavar="LEFT,TOP,RIGHT,BOTTOM=PROMPT",
        help="a box, in fractions of the image, with a prompt of its own, in which the concepts act that this prompt "
        "names, or that follow it in brackets: '0,0,0.5,1=a dog on grass [dog:0.8]'; '0,0,0.5,1=[dog]' keeps the "
        "prompt of the whole image; elsewhere they act on their own words only; repeat the option for more regions",
    )
    options.add_argument(
        "--region-strength",
        type=share,
        metavar="X",
        help="share of a region's prompt in its box; the rest is the global prompt's "
        f"(default: {DEFAULT_STRENGTH:.3f})",
    )
    options.add_argument(
        "--region-start", type=share, metavar="X", help="share of the steps before regions begin to act (default: 0)"
    )
    options.add_argument(
        "--region-end", type=share, metavar="X", help="share of the steps after which regions stop (default: 1)"
    )
    options.add_argument(
        "--feather",
        type=share,
        metavar="X",
        help="width of the transition at the edges of boxes, as a fraction of the image (default: 0)",
    )


def read_regions(args: argparse.Namespace) -> list[Region]:
    """Read the regions from the values of `add_regions`.

    Raises:
        UserError: one of them cannot be used, or a setting of regions is given without any.
    """
    values = {"strength": args.region_strength, "start": args.region_start, "end": args.region_end}
    given = {name: value for name, value in {**values, "feather": args.feather}.items() if value is not None}
    if given and not args.region:
        raise UserError(f"{_SETTINGS[next(iter(given))]} is a setting of regions: give --region, too.")
    return [parse_region(text, **given) for text in args.region]
