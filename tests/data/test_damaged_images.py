"""Image files that are damaged or made to do harm: read or refused in a sentence, in bounded memory and time."""

import os
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from damaged_images import read_damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile, PngImagePlugin, WebPImagePlugin

from seqlora_core.data.images import MAX_SIDE_RATIO, read_image
from seqlora_core.data.reference_folder import read_folder
from seqlora_core.errors import UserError


def photo(width=64, height=48) -> Image.Image:
    """Red on the left, black on the right."""
    image = Image.new("RGB", (width, height))
    image.paste("red", (0, 0, width // 2, height))
    return image


def save(image: Image.Image, kind: str, **options) -> bytes:
    image.save(buffer := BytesIO(), kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    """A file of a few dozen bytes that claims that size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")


def test_a_sample_of_damaged_images_is_read_or_refused_in_a_sentence(tmp_path):
    results, slowest = read_damaged(tmp_path, 200, seed=0)
    assert results["read"] > 10
    assert results["refused"] > 100
    assert slowest < 5


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from(
        [b"", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8X", b"%!PS", b"GIF89a"]
    ),
    rest=st.binary(max_size=300),
    ending=st.sampled_from([".jpg", ".jfif", ".png", ".webp"]),
)
def test_any_bytes_with_an_image_ending_are_refused_by_name(tmp_path, start, rest, ending):
    path = tmp_path / f"any{ending}"
    path.write_bytes(start + rest)
    with pytest.raises(UserError, match=rf"any\{ending}"):
        read_image(path)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "BMP", "TIFF", "PDF", "ICO", "JPEG2000"])
def test_other_formats_are_not_decoded_and_named_whatever_their_ending(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    (tmp_path / "a.png").write_bytes(save(photo(), kind))
    with pytest.raises(UserError, match=rf"a\.png .* is a {kind.replace('G2', 'G 2')} file"):
        read_folder(tmp_path, "sksdog dog")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"<!DOCTYPE html><title>404</title>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"", "not an image"),
    ],
)
def test_what_a_download_or_a_phone_left_instead_is_said(tmp_path, content, said):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_folder(tmp_path, "sksdog dog")


def test_a_promised_format_under_the_ending_of_another_is_read_and_reported(tmp_path):
    (tmp_path / "a.png").write_bytes(save(photo(), "WEBP"))
    (tmp_path / "b.jfif").write_bytes(save(photo(), "JPEG"))
    found = read_folder(tmp_path, "sksdog dog")
    assert [reference.image.size for reference in found] == [(64, 48)] * 2
    assert [note for note in found.notes if "WEBP" in note and "a.png" in note]
    assert not [note for note in found.notes if "b.jfif" in note]


def test_the_first_of_several_frames_is_read_and_reported(tmp_path):
    for name, kind in (("a.png", "PNG"), ("b.webp", "WEBP"), ("c.jpg", "MPO")):
        content = save(photo(), kind, save_all=True, append_images=[Image.new("RGB", (64, 48), "blue")])
        (tmp_path / name).write_bytes(content)
    found = read_folder(tmp_path, "sksdog dog")
    assert all(reference.image.getpixel((5, 5))[0] > 200 for reference in found)
    assert [note.split()[0] for note in found.notes if "holds 2 images" in note] == ["a.png", "b.webp", "c.jpg"]


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (11 * 64, 64)])
def test_extreme_proportions_are_refused_before_a_crop_asks_for_gigabytes(tmp_path, size):
    (tmp_path / "a.png").write_bytes(save(Image.new("RGB", size), "PNG"))
    with pytest.raises(UserError, match=rf"{size[0]} x {size[1]} pixels"):
        read_folder(tmp_path, "sksdog dog")
    save_as = tmp_path / "a.png"
    photo(64 * MAX_SIDE_RATIO, 64).save(save_as)
    assert read_image(save_as).size == (64 * MAX_SIDE_RATIO, 64)


@pytest.mark.parametrize("side", [11000, 60000, 2**31 - 1])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_header_with_too_many_pixels_is_refused_before_decoding(tmp_path, kind, side, monkeypatch):
    content = png_header(side, side)
    if kind == "JPEG":
        content = bytearray(save(photo(), "JPEG"))
        content[(at := content.find(b"\xff\xc0") + 5) : at + 4] = struct.pack(">HH", *[min(side, 2**16 - 1)] * 2)
    if kind == "WEBP":
        content = bytearray(save(photo(), "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48))]))
        content[24:30] = struct.pack("<I", min(side, 2**24) - 1)[:3] * 2
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for plugin in (ImageFile.ImageFile, WebPImagePlugin.WebPImageFile):
        monkeypatch.setattr(plugin, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=r"too many pixels|cannot be read"):
        read_image(path)


def test_a_photo_of_108_million_pixels_passes_the_check_of_its_header(tmp_path, monkeypatch):
    def decoded(self):
        raise UserError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    (tmp_path / "a.png").write_bytes(png_header(12000, 9000))
    with pytest.raises(UserError, match=r"^decoded$"):
        read_image(tmp_path / "a.png")


def test_texts_in_a_png_that_unpack_to_megabytes_are_left_out(tmp_path):
    plain = save(photo(), "PNG")
    for place, kind in enumerate((b"zTXt", b"iTXt", b"iCCP")):
        head = b"x\0\1\0\0\0" if kind == b"iTXt" else b"x\0\0"
        chunk = png_chunk(kind, head + zlib.compress(bytes(2 * 2**20)))
        (tmp_path / f"{place}.png").write_bytes(plain[:33] + chunk + plain[33:])
        (tmp_path / f"{place}-after.png").write_bytes(plain[:-12] + chunk + plain[-12:])
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 10**6)  # what ComfyUI writes
    photo().save(tmp_path / "comfy.png", pnginfo=text)
    found = read_folder(tmp_path, "sksdog dog")
    assert all(reference.image.tobytes() == photo().tobytes() for reference in found)
    assert len(found) == 7


def exif(*entries: tuple[int, int, int, int], rest: bytes = b"") -> bytes:
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + rest


TURNED = (0x0112, 3, 1, 6)  # by 90 degrees


@pytest.mark.parametrize(
    ("block", "size"),
    [
        (exif(TURNED, (0x011A, 2, 4, 0x41414141)), (48, 64)),  # a resolution that is text
        (exif(TURNED, (0x8825, 4, 1, 2**32 - 1), (0x8769, 4, 1, 8)), (48, 64)),  # tables beyond the end, or in circles
        (exif(TURNED, (0x010E, 2, 2**31, 0)), (48, 64)),  # a text of two gigabytes
        (exif(TURNED, (0x927C, 99, 7, 7)), (48, 64)),  # no such type
        (exif((0x0112, 2, 4, 0x41414141)), (64, 48)),  # an orientation that is text
        (exif((0x0112, 3, 1, 77)), (64, 48)),
        (exif((0x0112, 5, 1, 0)), (64, 48)),
        (b"Exif\0\0", (64, 48)),
        (b"Exif\0\0garbage", (64, 48)),
        (exif(TURNED)[:20], (64, 48)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_of_any_kind_does_not_stop_a_photo(tmp_path, block, size, kind):
    path = tmp_path / "a.jpg"
    if kind == "PNG":
        plain = save(photo(), "PNG")
        path.write_bytes(plain[:33] + png_chunk(b"eXIf", block[6:]) + plain[33:])
    else:
        path.write_bytes(save(photo(), kind, exif=block))
    assert read_image(path).size == size


def test_exif_that_points_to_all_of_itself_thousands_of_times_takes_no_memory(tmp_path):
    count, rest = 60000, bytes(8 * 2**20)
    block = exif(*((tag, 7, len(rest), 8) for tag in range(count)), rest=rest)[6:]  # 480 GB of values
    plain = save(photo(), "PNG")
    (tmp_path / "a.png").write_bytes(plain[:33] + png_chunk(b"eXIf", block) + plain[33:])
    plain = save(photo(), "JPEG")
    parts = [block[at : at + 65000] for at in range(0, len(block), 65000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    (tmp_path / "b.jpg").write_bytes(plain[:2] + segments + plain[2:])
    plain = save(photo(), "WEBP", exif=b"x")
    at = plain.find(b"EXIF")
    webp = plain[:at] + b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) % 2)
    (tmp_path / "c.webp").write_bytes(webp[:4] + struct.pack("<I", len(webp) - 8) + webp[8:])
    found = read_folder(tmp_path, "sksdog dog")
    assert [reference.image.size for reference in found] == [(64, 48)] * 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", ["a.png", "b.txt", "notes.md"])
def test_a_fifo_in_the_folder_does_not_hang(tmp_path, name):
    photo().save(tmp_path / "b.png")
    os.mkfifo(tmp_path / name)
    if name == "notes.md":
        assert any("notes.md" in note for note in read_folder(tmp_path, "sksdog dog").notes)
    else:
        with pytest.raises(UserError, match=rf"{name} is not a file"):
            read_folder(tmp_path, "sksdog dog")


def test_links_to_images_are_read_and_links_to_nothing_are_named(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    photo().save(tmp_path / "elsewhere.png")
    try:
        (folder / "a.png").symlink_to(tmp_path / "elsewhere.png")
    except OSError:
        pytest.skip("this system does not let us make links")
    assert read_folder(folder, "sksdog dog")[0].image.size == (64, 48)
    (folder / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"b\.png"):
        read_folder(folder, "sksdog dog")


def test_a_file_larger_than_any_photo_is_refused_unread(tmp_path):
    with open(tmp_path / "a.webp", "wb") as file:
        file.write(save(photo(), "WEBP"))
        file.truncate(2**29 + 1)  # sparse
    with pytest.raises(UserError, match="512 MB"):
        read_image(tmp_path / "a.webp")


def test_deep_gray_images_keep_their_values_row_by_row(tmp_path):
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "a.png")
    read = np.asarray(read_image(tmp_path / "a.png"))[..., 0]
    assert (read == np.round(values / 257)).all()
