"""What dinokit itself reads of an image file, because Pillow reads it too late, too slowly or not at all.

The format by its first bytes, the pixel size before a decoder takes memory, PNG checksums, the number of frames.
Source: the format specifications (PNG third edition, GIF89a, TIFF 6.0 and BigTIFF, WebP container).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Protocol, cast, runtime_checkable

from PIL import Image, ImageFile, JpegImagePlugin

# Importing a plugin registers it with Pillow, as `Image.open` would; each when it is first looked for, as a JPEG needs only its own.
_PLUGINS = {"PNG": "Png", "WEBP": "WebP", "TIFF": "Tiff", "BMP": "Bmp", "GIF": "Gif", "AVIF": "Avif"}

HEAD_BYTES = 64
BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)
# Bounds on walks through a file's structure: a hostile file may hold millions of empty blocks.
MAX_BLOCKS = 1_000_000
# Tags of a TIFF, and the old way of JPEG in it.
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTES = 273, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
WIDTH, HEIGHT, COMPRESSION, SAMPLES, PLANAR, OLD_JPEG = 256, 257, 259, 277, 284, 6
MAX_DIRECTORIES = 10_000
CRC_PIECE = 1 << 20


@runtime_checkable
class BinaryFile(Protocol):
    """What is asked of an open file: less than `IO[bytes]`, which `io.BytesIO` is not."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to another place."""
        ...

    def tell(self) -> int:
        """The present place."""
        ...


def default_formats() -> tuple[str, ...]:
    """The allow-list: formats that photographs come in and whose readers are well tested; AVIF if Pillow has it."""
    return ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", *(("AVIF",) if find_spec("PIL._avif") else ()))


def identify(head: bytes, formats: Sequence[str]) -> str | None:
    """Which of `formats` the first bytes belong to.

    Raises:
        ValueError: Pillow has no reader of that name.
    """
    for name in formats:
        if name not in Image.OPEN and name in _PLUGINS:
            import_module(f"PIL.{_PLUGINS[name]}ImagePlugin")
        if name not in Image.OPEN:
            Image.init()  # a format outside the default list: Pillow registers the rest of its readers
        if name not in Image.OPEN:
            raise ValueError(
                f"formats names {name!r}, which this Pillow can't read; `python -m PIL` lists what it can."
            )
        accept = Image.OPEN[name][1]
        if accept is not None and accept(head[:16]) is True and (name != "BMP" or _is_bmp(head)):
            return name
    return None


def _is_bmp(head: bytes) -> bool:
    # "BM" alone also begins many a text; the size of the second header takes few values.
    return len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in BMP_HEADER_SIZES


def open_lazily(file: BinaryFile, name: str) -> ImageFile.ImageFile:
    """Pillow's reader on `file`, header read, pixels not.

    Not `Image.open`, which warns or raises at limits that are the whole process's, while ours is an argument. JPEG is
    read as such even if more pictures follow in the file (MPO): they are previews and gain maps, not frames.
    """
    file.seek(0)
    if name == "JPEG":
        return JpegImagePlugin.JpegImageFile(cast("IO[bytes]", file))
    return Image.OPEN[name][0](cast("IO[bytes]", file), "")


def size_in_header(head: bytes, name: str) -> tuple[int, int] | None:
    """(Height, width) of a WebP file, whose decoder takes memory for the canvas as soon as it exists."""
    if name != "WEBP" or len(head) < 30:
        return None
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return height & 0x3FFF, width & 0x3FFF
    return None


def damaged_png_chunk(file: BinaryFile) -> str | None:
    """Name of the first critical chunk whose checksum is wrong, or None.

    Pillow does not check those of the pixel data, so that a flipped bit may give other pixels in silence.
    """
    file.seek(8)
    for _ in range(MAX_BLOCKS):
        header = file.read(8)
        if len(header) < 8:
            return None
        length, kind = struct.unpack(">I4s", header)
        if kind[0] & 0x20:  # ancillary: no pixels in it
            file.seek(length + 4, 1)
            continue
        crc, left = zlib.crc32(kind), length
        while left:
            piece = file.read(min(left, CRC_PIECE))
            if not piece:
                return None  # cut short, which Pillow reports
            crc, left = zlib.crc32(piece, crc), left - len(piece)
        stored = file.read(4)
        if len(stored) == 4 and int.from_bytes(stored, "big") != crc:
            return str(kind, "latin-1")
        if kind == b"IEND":
            return None
    return None


def missing_tiff_part(image: ImageFile.ImageFile, file_bytes: int) -> str | None:
    """What of the pixels a TIFF's first page says that it has and has not, in words; None where all is there.

    libtiff gives black for strips and tiles that are missing, and says nothing that reaches the caller.
    """
    tags = image.tag_v2  # type: ignore[attr-defined]
    tiled = TILE_OFFSETS in tags
    offsets, counts = (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES)
    if tags.get(COMPRESSION) == OLD_JPEG or offsets not in tags:
        return None  # its data stand elsewhere, or Pillow refuses it
    width, height = tags[WIDTH], tags[HEIGHT]
    if tiled:
        wanted = -(-width // max(1, tags.get(TILE_WIDTH, width))) * -(-height // max(1, tags.get(TILE_HEIGHT, height)))
    else:
        wanted = -(-height // max(1, min(tags.get(ROWS_PER_STRIP, height), height)))
    if tags.get(PLANAR, 1) == 2:
        wanted *= tags.get(SAMPLES, 1)
    part, starts, sizes = "tile" if tiled else "strip", _numbers(tags[offsets]), _numbers(tags.get(counts, ()))
    if len(starts) < wanted:
        return f"{wanted} {part}s of pixels are announced and {len(starts)} listed"
    for number, (start, size) in enumerate(zip(starts[:wanted], sizes, strict=False)):
        if not size or start + size > file_bytes:
            return f"{part} {number} of {wanted} is {'empty' if not size else 'not all in the file'}"
    return None


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def count_frames(file: BinaryFile, name: str) -> int:
    """Frames of a GIF or pages of a TIFF, counted without decoding; 0 for other formats, whose readers know at once."""
    match name:
        case "GIF":
            return max(1, _gif_frames(file))
        case "TIFF":
            return max(1, _tiff_pages(file))
    return 0


def _gif_frames(file: BinaryFile) -> int:
    file.seek(6)
    screen = file.read(7)
    if len(screen) < 7:
        return 0
    _skip_palette(file, screen[4])
    frames, in_blocks = 0, False
    for _ in range(MAX_BLOCKS):
        mark = file.read(1)
        if not mark:
            break
        if in_blocks:
            in_blocks = mark != b"\0"
            file.read(mark[0])
        elif mark == b",":
            frames += 1
            _skip_palette(file, (file.read(9) or b"\0")[-1])
            file.read(1)
            in_blocks = True
        elif mark == b"!":
            file.read(1)
            in_blocks = True
        else:
            break
    return frames


def _skip_palette(file: BinaryFile, flags: int) -> None:
    if flags & 0x80:
        file.read(3 << (flags & 7) + 1)


def _tiff_pages(file: BinaryFile) -> int:
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = len(head) == 16 and struct.unpack_from(order + "H", head, 2)[0] == 43
    count_form, entry_bytes, next_form = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    offset = struct.unpack_from(next_form, head, 8 if big else 4)[0]
    seen: set[int] = set()
    while 0 < offset < 1 << 62 and offset not in seen and len(seen) < MAX_DIRECTORIES:
        file.seek(offset)
        count = file.read(struct.calcsize(count_form))
        if len(count) < struct.calcsize(count_form):
            break
        seen.add(offset)
        entries = struct.unpack(count_form, count)[0] * entry_bytes
        if entries >= 1 << 40:
            break
        file.seek(entries, 1)
        following = file.read(struct.calcsize(next_form))
        if len(following) < struct.calcsize(next_form):
            break
        offset = struct.unpack(next_form, following)[0]
    return len(seen)
