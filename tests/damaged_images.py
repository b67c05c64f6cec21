"""Damaged and hostile image files, made at random.  `attack.py` is the command."""

import struct
import time
import zlib
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from seqlora_core.data.images import MAX_PIXELS
from seqlora_core.data.reference_folder import read_folder
from seqlora_core.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".JPG", ".PNG")
EXIF_TYPES = 13


def sound_files() -> list[bytes]:
    """Images of all formats and modes that are promised, and of some that are not."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, gray = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", "x" * 500, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a title", 72.0
    mpo = {"save_all": True, "append_images": [rgb.copy()]}
    saved = [
        *((rgb, "JPEG", {"progressive": bool(each), "exif": exif}) for each in range(2)),
        *((image, "JPEG", {"icc_profile": b"p" * 300}) for image in (gray, rgb.convert("CMYK"))),
        (rgb, "MPO", mpo),
        *((image, "PNG", {"exif": exif, "pnginfo": text}) for image in (rgb, rgba, deep, rgba.quantize(16))),
        *((image, "PNG", mpo) for image in (rgb, rgba)),
        *((rgba, "WEBP", {"lossless": bool(each), "exif": exif}) for each in range(2)),
        (rgb, "WEBP", mpo),
        *((rgb, kind, {}) for kind in ("GIF", "BMP", "TIFF", "EPS", "PDF", "ICO", "PPM", "TGA", "JPEG2000")),
    ]
    files = []
    for image, kind, options in saved:
        image.save(buffer := BytesIO(), kind, **options)
        files.append(buffer.getvalue())
    return files


def damaged(files: list[bytes], random: np.random.Generator) -> bytes:
    """One of the files, damaged in one to three ways."""
    content = files[random.integers(len(files))]
    for _ in range(random.integers(1, 4)):
        change = _CHANGES[random.integers(len(_CHANGES))]
        content = change(content, random) if len(content) > 64 else content
    return content


def _truncate(content: bytes, random: np.random.Generator) -> bytes:
    return content[: random.integers(len(content))]


def _flip(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    span = (len(content), min(len(content), 200))[random.integers(2)]  # anywhere, or in the headers
    for place in random.integers(span, size=random.integers(1, 20)):
        changed[place] ^= 1 << random.integers(8)
    return bytes(changed)


def _overwrite(content: bytes, random: np.random.Generator) -> bytes:
    start, length = random.integers(len(content)), random.integers(1, 64)
    return content[:start] + random.bytes(length) + content[start + length :]


def _cut_out(content: bytes, random: np.random.Generator) -> bytes:
    start = random.integers(len(content))
    return content[:start] + content[start + random.integers(1, 300) :]


def _repeat(content: bytes, random: np.random.Generator) -> bytes:
    start, length = random.integers(len(content)), random.integers(1, 300)
    return content[: start + length] + content[start:]


def _resize(content: bytes, random: np.random.Generator) -> bytes:
    """Another size in the header, with the right checksum."""
    width, height = (int(2 ** random.uniform(0, 32)) for _ in range(2))
    if content.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    if content.startswith(b"RIFF") and content[12:16] == b"VP8X":
        sides = struct.pack("<I", width % 2**24)[:3] + struct.pack("<I", height % 2**24)[:3]
        return content[:24] + sides + content[30:]
    for marker in (b"\xff\xc0", b"\xff\xc2"):
        if (at := content.find(marker)) > 0:
            return content[: at + 5] + struct.pack(">HH", height % 2**16, width % 2**16) + content[at + 9 :]
    return content


def _new_exif(content: bytes, random: np.random.Generator) -> bytes:
    """EXIF of random types, counts and offsets, the orientation among them."""
    entries = [(0x0112, 3, 1, 6), (0x8769, 4, 1, int(random.integers(200)))]
    for _ in range(random.integers(1, 12)):
        tag = int(random.choice([0x0112, 0x011A, 0x0128, 0x010E, 0x8825, 0x927C, random.integers(2**16)]))
        count = int(2 ** random.uniform(0, 32)) if random.integers(2) else int(random.integers(4))
        entries.append((tag, int(random.integers(EXIF_TYPES + 1)), count, int(2 ** random.uniform(0, 32))))
    order = random.permutation(len(entries))
    table = b"".join(struct.pack("<HHII", *entries[place]) for place in order)
    block = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + random.bytes(random.integers(300))
    if content.startswith(b"\xff\xd8"):
        segment = b"Exif\0\0" + block
        return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    if content.startswith(b"\x89PNG"):
        chunk = b"eXIf" + block
        return (
            content[:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
        )
    return content


def _big_text(content: bytes, random: np.random.Generator) -> bytes:
    """A PNG text that unpacks to megabytes."""
    if not content.startswith(b"\x89PNG"):
        return content
    kind = (b"zTXt", b"iCCP", b"iTXt")[random.integers(3)]
    head = b"x\0\1\0\0\0" if kind == b"iTXt" else b"x\0\0"
    body = head + zlib.compress(bytes(2 * 2**20))
    chunk = kind + body
    return content[:33] + struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


_CHANGES = (_truncate, _flip, _flip, _overwrite, _cut_out, _repeat, _resize, _new_exif, _new_exif, _big_text)


def read_damaged(folder: Path, count: int, seed: int) -> tuple[Counter, float]:
    """Read `count` folders with one damaged image each.

    Returns:
        how many were read, read with a note, and refused; and the seconds that the slowest one took.

    Raises:
        whatever `read_folder` raises that is no UserError; the file stays in the folder.
    """
    random, files = np.random.default_rng(seed), sound_files()
    results, slowest = Counter(), 0.0
    for _ in range(count):
        path = folder / f"image{ENDINGS[random.integers(len(ENDINGS))]}"
        path.write_bytes(damaged(files, random))
        start = time.perf_counter()
        try:
            (reference,) = found = read_folder(folder, "sksdog dog")
            assert reference.image.mode == "RGB"
            assert reference.image.width * reference.image.height <= MAX_PIXELS
            results["read, with a note" if len(found.notes) > 1 else "read"] += 1
        except UserError as error:
            assert str(path) in str(error)
            assert len(str(error).splitlines()) == 1
            results["refused"] += 1
        slowest = max(slowest, time.perf_counter() - start)
        path.unlink()
    return results, slowest
