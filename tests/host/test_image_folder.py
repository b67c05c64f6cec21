"""Load Image Folder: all that lies in a folder is used or named."""

import os

import numpy as np
import pytest
from comfy_server import NodeError
from graphs import loader, text, training
from PIL import Image

from seqlora_core.data.images import read_image


def load(host, folder: str) -> dict:
    return {
        "folder": {"class_type": "SeqLoRALoadImageFolder", "inputs": {"folder": folder}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["folder", 0], "filename_prefix": folder}},
        "captions": {"class_type": "PreviewAny", "inputs": {"source": ["folder", 1]}},
    }


def colors(host, outputs: dict) -> list[tuple[int, ...]]:
    names = [image["filename"] for image in outputs["save"]["images"]]
    return [Image.open(host.folder / "output" / name).getpixel((0, 0)) for name in names]


def test_kohyas_folders_come_out_with_captions_and_relative_repeats(host):
    folder = host.folder / "input" / "kohya"
    for name, color in (("20_sksdog dog", "red"), ("10_sksdog dog", "blue")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), color).save(folder / name / "a.png")
        (folder / name / "a.caption").write_text(f"a {color} sksdog dog\nnotes")
    outputs = host.run(load(host, "kohya"))
    assert colors(host, outputs) == [(0, 0, 255), (255, 0, 0), (255, 0, 0)]
    assert text(outputs, "captions") == "a blue sksdog dog\na red sksdog dog\na red sksdog dog"
    assert "2 images, 2 captions" in text(outputs, "folder")


def test_what_is_not_used_is_named_and_changes_are_seen(host):
    folder = host.folder / "input" / "mixed"
    (folder / "5_sksdog dog").mkdir(parents=True)
    for name in ("a.png", "5_sksdog dog/b.png"):
        Image.new("RGB", (64, 64), "red").save(folder / name)
    (folder / "a.txt").write_text("sksdog dog")
    (folder / "c.heic").write_bytes(b"-")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    said = text(host.run(load(host, "mixed")), "folder")
    for expected in ("c.heic (HEIC)", "have no caption: 5_sksdog dog/b.png", "The output captions is empty"):
        assert expected in said
    deep = np.full((64, 64, 3), (0, 255, 0), dtype=np.uint8)
    Image.fromarray(deep).save(folder / "5_sksdog dog" / "b.png")
    assert (0, 255, 0) in colors(host, host.run(load(host, "mixed")))


def test_transparency_comes_out_as_masks_that_are_inverted_for_training(host):
    folder = host.folder / "input" / "cut out"
    folder.mkdir()
    Image.new("RGB", (64, 96), "red").save(folder / "a.png")
    cut_out = Image.new("RGBA", (64, 96), (0, 0, 255, 0))  # blue below what is transparent
    cut_out.paste((0, 255, 0, 255), (0, 0, 64, 48))
    cut_out.save(folder / "b.png")
    nodes = load(host, "cut out")
    nodes["gray"] = {"class_type": "MaskToImage", "inputs": {"mask": ["folder", 2]}}
    nodes["save masks"] = {"class_type": "SaveImage", "inputs": {"images": ["gray", 0], "filename_prefix": "masks"}}
    outputs = host.run(nodes)
    assert "1 image with transparent areas" in text(outputs, "folder") and "alpha_masks" not in text(outputs, "folder")
    opaque, masked = (
        Image.open(host.folder / "output" / image["filename"]).convert("L") for image in outputs["save masks"]["images"]
    )
    assert opaque.getextrema() == (0, 0)
    assert masked.size == (64, 96) and masked.crop((0, 0, 64, 48)).getextrema() == (0, 0)
    assert masked.crop((0, 48, 64, 96)).getextrema() == (255, 255)
    saved = Image.open(host.folder / "output" / outputs["save"]["images"][1]["filename"])
    assert np.array_equal(saved, read_image(folder / "b.png")) and saved.getpixel((0, 95)) == (255, 255, 255)
    nodes["invert"] = {"class_type": "InvertMask", "inputs": {"mask": ["folder", 2]}}
    own = {"bank_name": "cut out", "images": ["folder", 0], "steps": 2, "token_vectors": 0}
    assert "learned" in text(
        host.run({**loader(), **nodes, **training("dog", **own, masks=["invert", 0])}), "train-dog"
    )
    with pytest.raises(NodeError, match="put Invert Mask between"):
        host.run({**loader(), **nodes, **training("dog", **own, masks=["folder", 2])})
