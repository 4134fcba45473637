"""Image files made by code: the odd, the damaged and the hostile."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random 8-bit pixels."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int = 33, width: int = 40) -> Image.Image:
    """A smooth picture, which survives JPEG."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([rows * 6 % 256, columns * 5 % 256, (rows + columns) * 3 % 256], -1).astype(np.uint8)
    )


def png_chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """One chunk, with its own checksum or a wrong one."""
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, colour: int, rows: bytes | None, *extra: bytes) -> bytes:
    """A PNG of raw scanlines (each with its filter byte); None: header only."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"" if rows is None else png_chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + png_chunk(b"IEND", b"")


def png16(values: np.ndarray) -> bytes:
    """Grey (h w) or colour (h w 3) of 16 bits."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 0 if values.ndim == 2 else 2, rows)


def exif(orientation: int) -> bytes:
    """EXIF that says how the camera was held."""
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF whose first page says something else about itself; the tag has one number."""
    page = struct.unpack_from("<I", tiff, 4)[0]
    for i in range(struct.unpack_from("<H", tiff, page)[0]):
        entry = page + 2 + 12 * i
        found, _, count = struct.unpack_from("<HHI", tiff, entry)
        if found == tag:
            assert count == 1
            return tiff[: entry + 2] + struct.pack("<HII", 4, 1, value) + tiff[entry + 12 :]
    raise AssertionError(f"no tag {tag}")


def tiff12() -> bytes:
    """One row of four grey pixels of 12 bits: 0, 1365, 2730, 4095."""
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    packed = bytes([0x00, 0x05, 0x55, 0xAA, 0xAF, 0xFF])
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        directory += struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value)
    return b"II*\0" + struct.pack("<I", 14) + packed + directory + struct.pack("<I", 0)


def seeds() -> list[tuple[str, bytes]]:
    """Small valid files of every format, for the fuzz test."""
    image, grey16 = photo(), Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    floats = Image.fromarray(np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20))
    more = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    turned = {"exif": exif(6)}
    return [
        ("JPEG", saved(image, "JPEG", **turned)),
        ("JPEG", saved(image, "JPEG", progressive=True)),
        ("JPEG", saved(image.convert("CMYK"), "JPEG")),
        ("PNG", saved(image, "PNG", **turned)),
        ("PNG", saved(image.convert("P"), "PNG", transparency=bytes(range(200)))),
        ("PNG", saved(grey16, "PNG")),
        ("PNG", saved(image, "PNG", **more)),
        ("WEBP", saved(image, "WEBP", **turned)),
        ("WEBP", saved(image.convert("RGBA"), "WEBP", lossless=True)),
        ("WEBP", saved(image, "WEBP", **more)),
        ("TIFF", saved(image, "TIFF", **turned)),
        ("TIFF", saved(image, "TIFF", compression="tiff_lzw")),
        ("TIFF", saved(image, "TIFF", compression="jpeg")),
        ("TIFF", saved(floats, "TIFF")),
        ("TIFF", saved(image, "TIFF", **more)),
        ("GIF", saved(image, "GIF")),
        ("GIF", saved(image, "GIF", **more)),
        ("BMP", saved(image, "BMP")),
        ("BMP", saved(image.convert("P"), "BMP")),
    ]
