"""The figures: how scores change as the bank grows, and what concepts look like in the end."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, LABEL, HEAD = 64, 330, 30  # px


def draw_growth(growth: Mapping[str, Mapping[int, float]], folder: Path) -> None:
    """Draw the mean final score by the number of concepts, as PNG and SVG."""
    if not growth:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same figure is the same file
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for place, (name, points) in enumerate(growth.items()):
        color, width = (f"C{place - 1}", 1.3) if place else ("black", 3)
        dashes = "--" if place > 10 else "-"  # there are ten colours
        axes.plot(points.keys(), points.values(), dashes, marker="o", markersize=4, color=color, lw=width, label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({count for points in growth.values() for count in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("concepts put together")
    axes.set_ylabel("mean identity")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(folder / "growth.png", dpi=120)
    figure.savefig(folder / "growth.svg", metadata={"Date": None})
    pyplot.close(figure)


def draw_grid(rows: Mapping[str, Path], concepts: Mapping[str, Image.Image], path: Path) -> None:
    """Draw one image per concept and system, below a reference image of each concept.

    Args:
        rows: the folder of each system's images.
        concepts: a reference image by the names of the files in these folders.
    """
    sheet = Image.new("RGB", (LABEL + len(concepts) * SIDE, HEAD + (1 + len(rows)) * SIDE), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(("reference image", *rows)):
        pen.text((6, HEAD + row * SIDE + SIDE // 2 - 6), name, fill="black")
    for column, (name, reference) in enumerate(concepts.items()):
        left = LABEL + column * SIDE
        pen.multiline_text((left, 2), name.replace("-", "\n"), fill="black", spacing=1)
        pictures = [reference]
        for folder in rows.values():
            with Image.open(folder / f"{name}.png") as picture:
                pictures.append(picture.convert("RGB"))
        for row, picture in enumerate(pictures):
            sheet.paste(picture.resize((SIDE - 2, SIDE - 2), Image.Resampling.NEAREST), (left, HEAD + row * SIDE))
    sheet.quantize(256).save(path, optimize=True)
