"""Image files before they are decoded: what their content is, and their metadata kept small."""

import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError

# A file with one of these endings is an image; its content may be any of FORMATS, by Pillow's names.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
# Largest metadata block that reaches Pillow, in bytes. One EXIF entry can point to all of the block, and Pillow copies
# what every entry points to, so that a few megabytes of EXIF could ask for gigabytes of memory.
MAX_METADATA = 65536

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"version https://git-lfs", "Git LFS pointer"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftyp", "MP4"),
)
_MARKUP = re.compile(rb"\s*<(\?xml|!doctype|svg|html)", re.IGNORECASE)


def identify(content: bytes) -> str:
    """The format that the first bytes of a file say it has, by Pillow's name where Pillow has one; "" if unknown."""
    for offset, signature, name in _SIGNATURES:
        if content.startswith(signature, offset):
            return name
    if markup := _MARKUP.match(content[:256].removeprefix(b"\xef\xbb\xbf")):
        return "HTML" if b"html" in content[:256].lower() or markup[1].lower() == b"!doctype" else "SVG or XML"
    return ""


def shown(path: Path | str) -> str:
    """A path or name for a message: characters that do not print, or that are no text at all, are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(path))


def is_regular(path: Path) -> bool:
    """Whether it is a file with content, or a link to one: opening a FIFO or a device may wait forever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_regular(path: Path, limit: int, what: str) -> bytes:
    """The content of a file of at most `limit` bytes.

    Args:
        what: the noun for the message, such as "image".

    Raises:
        UserError: it is larger, is no regular file, or cannot be read.
    """
    if not is_regular(path):
        raise UserError(f"The {what} {shown(path)} is not a file but a pipe, a device or a link to nothing: remove it.")
    try:
        with open(path, "rb") as file:
            too_large = os.fstat(file.fileno()).st_size > limit
            content = b"" if too_large else file.read(limit + 1)
    except OSError as error:
        raise UserError(
            f"The {what} {shown(path)} cannot be read ({error.strerror}): check its permissions."
        ) from error
    if too_large or len(content) > limit:
        size = f"{limit // 2**20} MB" if limit >= 2**20 else f"{limit // 2**10} kB"
        raise UserError(f"The {what} {shown(path)} is larger than {size}: replace it by a smaller one.")
    return content


def with_small_metadata(content: bytes, kind: str, limit: int = MAX_METADATA) -> bytes:
    """A JPEG or PNG file without the metadata blocks that are longer than `limit` bytes.

    The pixels stay the same. Of a JPEG's metadata, only the first block of each kind that says how to show the image
    remains; a WebP stays as it is, since Pillow does not look at its metadata until asked. A damaged file is left as it
    is from the damage on.
    """
    if kind == "JPEG":
        return b"".join(_jpeg_segments(content, limit))
    if kind == "PNG":
        return b"".join(_png_chunks(content, limit))
    return content


# What a JPEG's segments say of how to show it: marker, and how the content begins. JFIF and Adobe (which color space
# it has) belong to the pixels; EXIF and XMP have the orientation, MPF the number of images.
_JPEG_PIXELS = ((0xE0, b""), (0xEE, b"Adobe"))
_JPEG_METADATA = ((0xE1, b"Exif\0"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0"), (0xE2, b"MPF\0"))


def _jpeg_segments(content: bytes, limit: int) -> Iterator[bytes]:
    """The segments to keep up to the first scan, then the rest."""
    yield content[:2]
    position, found = 2, set()
    while content[position : position + 1] == b"\xff" and position + 4 <= len(content):
        marker, length = struct.unpack_from(">BH", content, position + 1)
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == 0xDA or length < 2 or 0xD0 <= marker <= 0xD9:
            break
        segment = content[position : position + 2 + length]
        position += len(segment)
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        kinds = [kind for kind in _JPEG_METADATA if kind[0] == marker and segment.startswith(kind[1], 4)]
        if kinds and kinds[0] not in found and length <= limit:
            found.add(kinds[0])
            yield segment
        elif not is_metadata or any(marker == kind and segment.startswith(name, 4) for kind, name in _JPEG_PIXELS):
            yield segment
    yield content[position:]


_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")


def _png_chunks(content: bytes, limit: int) -> Iterator[bytes]:
    yield content[:8]
    position = 8
    while position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        chunk = content[position : position + 12 + length]
        position += len(chunk)
        if name not in _PNG_METADATA or length <= limit:
            yield chunk
    yield content[position:]
