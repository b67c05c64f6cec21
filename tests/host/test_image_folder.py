"""Load Image Folder: all that lies in a folder is used or named."""

import os

import numpy as np
from graphs import text
from PIL import Image


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
