"""Reference images as people have them."""

import numpy as np
import pytest
import torch
from PIL import Image

from seqlora_core.data.captions import caption_prompts
from seqlora_core.data.images import fit, read_image, to_tensor
from seqlora_core.data.prompts import template_prompts
from seqlora_core.data.reference_folder import read_folder
from seqlora_core.errors import UserError


def gradient(width=40, height=20) -> Image.Image:
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(ramp, (height, 1))] * 3, axis=-1))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    gradient().save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".webp"])
def test_formats_and_gray_images_are_read(tmp_path, suffix):
    gradient().convert("L").save(tmp_path / f"x{suffix}")
    (reference,) = read_folder(tmp_path, "sksx dog")
    assert reference.image.mode == "RGB"


def test_large_images_can_be_scaled_down_as_they_are_read_and_small_ones_stay(tmp_path):
    for name, size in (("a", (300, 201)), ("b", (64, 200)), ("c", (30, 90))):
        gradient(*size).save(tmp_path / f"{name}.png")
    assert [reference.image.size for reference in read_folder(tmp_path, "x", 64)] == [(96, 64), (64, 200), (30, 90)]
    assert [reference.image.size for reference in read_folder(tmp_path, "x")] == [(300, 201), (64, 200), (30, 90)]


def test_captions_beside_images_win_over_templates(tmp_path):
    for name in ("a", "b", "c"):
        gradient().save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("\ufeffsksx dog on grass \n", encoding="utf-8")
    (tmp_path / "c.txt").write_text(" ", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not an image")
    (tmp_path / "._b.png").write_text("what macOS leaves on other disks")
    a, b, c = read_folder(tmp_path, "sksx dog")
    assert a.prompts == ("sksx dog on grass",)
    assert b.prompts == c.prompts
    assert "photo of a sksx dog" in b.prompts
    assert all("sksx dog" in prompt for prompt in b.prompts)


def test_captions_are_one_for_each_picture_or_one_for_all_or_templates():
    assert caption_prompts(" a \n\nb\n", "sksx dog", 2) == [("a",), ("b",)]
    assert caption_prompts("a", "sksx dog", 3) == [("a",)] * 3
    assert caption_prompts("\n", "sksx dog", 2) == [template_prompts("sksx dog")] * 2
    with pytest.raises(UserError, match="2 captions for 3 images"):
        caption_prompts("a\nb", "sksx dog", 3)


def test_folders_without_images_and_broken_images_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_folder(tmp_path / "none", "x")
    with pytest.raises(UserError, match="no images"):
        read_folder(tmp_path, "x")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        read_folder(tmp_path, "x")
    gradient().save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "broken.jpg").unlink()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.png"):
        read_folder(tmp_path, "x")


def test_fitting_keeps_the_middle_and_the_proportions():
    image = gradient(400, 200)
    square = fit(image, 64, True, 8)
    assert square.size == (64, 64)
    values = to_tensor([square])
    assert values.shape == (1, 3, 64, 64)
    assert torch.isclose(values.mean(), torch.tensor(0.0), atol=0.02)  # the middle of the ramp
    assert values.max() < 0.6
    assert fit(image, 64, False, 8).size == (128, 64)
    assert fit(gradient(200, 130), 64, False, 8).size == (96, 64)


def test_the_shared_photos_are_read(photos):
    for subject in ("dog", "cat", "backpack"):
        references = read_folder(photos / subject, f"sks {subject}")
        assert len(references) >= 4
        assert all(reference.image.size == (512, 512) for reference in references)
