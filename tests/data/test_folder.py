"""Image folders as people have them: nothing in them is ignored in silence."""

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from seqlora_core.data.captions import describe_missing_token
from seqlora_core.data.images import from_tensor, to_rgb
from seqlora_core.data.prompts import describe_cut_prompts
from seqlora_core.data.reference_folder import image_files, read_folder
from seqlora_core.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two images."""
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    return tmp_path


def notes(folder, **options) -> str:
    return "\n".join(read_folder(folder, "sksdog dog", **options).notes)


def test_an_ordinary_folder_needs_no_remark(folder):
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._a.png", "._a.txt"):
        (folder / name).write_bytes(b"of the system")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("photo of sksdog dog")
    found = read_folder(folder, "sksdog dog", token="sksdog")
    assert found.notes == ()
    assert found.summary == "2 images, 2 captions from files, 0 from templates"


def test_files_that_are_not_used_are_named_with_their_format(folder):
    for name, kind in (("c.bmp", "BMP"), ("d.gif", "GIF"), ("e.TIFF", "TIFF"), ("photo", "JPEG")):
        Image.new("RGB", (8, 8)).save(folder / name, kind)
    for name in ("f.heic", "notes.md", ".hidden.png", "lonely.txt"):
        (folder / name).write_bytes(b"-")
    said = notes(folder)
    for expected in ("c.bmp (BMP)", "d.gif (GIF)", "e.TIFF (TIFF)", "photo (JPEG)", "f.heic (HEIC)", "notes.md (MD)"):
        assert expected in said
    assert ".hidden.png (hidden)" in said
    assert "lonely.txt" in said


def test_a_folder_without_usable_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"-")
    (tmp_path / "deeper").mkdir()
    with pytest.raises(UserError, match=r"no images.*a\.heic.*deeper") as caught:
        image_files(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_jpe_and_jfif_are_jpegs(tmp_path):
    for name in ("a.jpe", "b.JFIF"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    assert len(read_folder(tmp_path, "sksdog dog")) == 2


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "A.Txt", "a.png.txt", "a.caption", "a.CAPTION", "a.png.caption"])
def test_captions_are_found_under_the_names_that_tools_use(folder, name):
    (folder / name).write_text("sksdog dog on grass")
    assert [reference.caption for reference in read_folder(folder, "sksdog dog")] == ["sksdog dog on grass", ""]


def test_captions_are_found_under_composed_and_decomposed_names(folder):
    name = "caf\u00e9"
    Image.new("RGB", (8, 8)).save(folder / f"{unicodedata.normalize('NFD', name)}.png")
    (folder / f"{unicodedata.normalize('NFC', name)}.txt").write_text("sksdog dog in a café", "utf-8")
    assert read_folder(folder, "sksdog dog")[2].caption == "sksdog dog in a café"


def test_of_two_captions_txt_wins_and_the_other_is_reported(folder):
    (folder / "a.caption").write_text("from kohya")
    (folder / "a.txt").write_text("sksdog dog")
    found = read_folder(folder, "sksdog dog")
    assert found[0].caption == "sksdog dog"
    assert "a.caption is not used: a.txt is the caption of a.png." in found.notes


def test_the_first_line_of_a_caption_counts_and_further_ones_are_reported(folder):
    (folder / "a.caption").write_text("\n photo of sksdog dog \r\nanother line\n")
    found = read_folder(folder, "sksdog dog")
    assert found[0].prompts == ("photo of sksdog dog",)
    assert any("a.caption" in note and "first of 2 lines" in note for note in found.notes)


def test_missing_and_empty_captions_among_others_are_reported(folder):
    (folder / "a.txt").write_text("sksdog dog")
    assert "1 of 2 images have no caption: b.png." in notes(folder)
    (folder / "b.txt").write_text(" \n")
    assert "1 of 2 images have no caption: b.png." in notes(folder)
    (folder / "a.txt").write_text("")
    assert "empty: a.png, b.png" in notes(folder)
    assert read_folder(folder, "sksdog dog").summary == "2 images, 0 captions from files, 2 from templates"


def test_captions_without_the_token_are_reported_and_case_does_not_matter(folder):
    (folder / "a.txt").write_text("a brown animal on grass")
    (folder / "b.txt").write_text("SKSDOG dog")
    said = notes(folder, token="sksdog")
    assert "1 of 2 captions do not contain the token 'sksdog'" in said
    assert "brown animal" in said
    assert "token" not in notes(folder)  # images of the class have none
    assert describe_missing_token([], "sksdog") == []


@pytest.mark.parametrize("content", [b"x" * 10**7, b"\xff\xfea\0", b"caf\xe9", b"a\0b"])
def test_captions_that_are_huge_or_no_utf8_are_refused_by_name(folder, content):
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"caption .*a\.txt"):
        read_folder(folder, "sksdog dog")


def test_a_huge_text_that_is_no_caption_does_not_matter(folder):
    (folder / "log.txt").write_bytes(b"x" * 10**7)
    assert "log.txt" in notes(folder)


def test_texts_that_are_cut_are_reported_with_the_longest():
    def count(prompt: str) -> int:
        return len(prompt.split()) + 2

    fits, cut = "word " * 75, "word " * 90
    assert describe_cut_prompts([fits, "a"], count) == []
    (note,) = describe_cut_prompts([fits, cut, cut], count)
    assert note.startswith("1 of 2 texts are longer than 77 tokens")
    assert "has 92" in note


def test_kohyas_folders_are_read_with_their_repeats(folder):
    for name in ("20_sksdog dog", "3_skscat cat", "0_off", "2024_holiday", "more"):
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "c.png")
    (folder / "20_sksdog dog" / "c.caption").write_text("sksdog dog")
    found = read_folder(folder, "sksdog dog")
    assert [reference.repeats for reference in found] == [1, 1, 20, 3]
    assert [reference.caption for reference in found] == ["", "", "sksdog dog", ""]
    assert found.summary == "4 images (25 per epoch with repeats), 1 caption from files, 3 from templates"
    said = "\n".join(found.notes)
    assert "20_sksdog dog adds 1 image, each 20 times per epoch.\n" in said
    assert "Its name says 'skscat cat'; the subject is 'sksdog dog'" in said
    learned = "\n".join(read_folder(folder, "sksdog").notes)
    assert learned.count("Its name says") == 1
    assert "not read: 0_off/, 2024_holiday/, more/" in said
    assert len(image_files(folder)) == 4


def test_a_single_image_is_reported(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "only one image" in notes(tmp_path)


def test_names_that_do_not_print_are_escaped_in_messages(folder):
    try:
        (folder / "odd\nname\udcff.md").write_bytes(b"-")
    except (OSError, UnicodeError):
        pytest.skip("this file system refuses such names")
    said = read_folder(folder, "sksdog dog").notes[0]
    assert r"odd\nname\udcff.md" in said
    said.encode("utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_image_tensors_with_values_that_are_no_numbers_are_refused(value, dtype):
    image = torch.full((4, 4, 3), 0.5, dtype=dtype)
    assert from_tensor(image).getpixel((0, 0)) == (128, 128, 128)
    image[1, 2, 0] = value
    with pytest.raises(UserError, match="image 3 has values that are not numbers"):
        from_tensor(image, "image 3")


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4, 0), (4, 4, 2), (4, 4, 16), (1, 4, 4, 3), (4,)])
def test_tensors_that_are_no_image_are_refused(shape):
    with pytest.raises(UserError, match="height, width"):
        from_tensor(torch.zeros(shape))


def test_image_tensors_are_gray_rgb_or_with_alpha_and_values_outside_clip():
    modes = [from_tensor(torch.tensor([[[2.0] * c]] if c else [[-1.0]])).mode for c in (0, 1, 3, 4)]
    assert modes == ["L", "L", "RGB", "RGBA"]
    assert from_tensor(torch.tensor([[[2.0]]])).getpixel((0, 0)) == 255


def test_float_images_with_values_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="not numbers"):
        to_rgb(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)))
