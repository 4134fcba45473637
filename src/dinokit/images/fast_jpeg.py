"""Plain JPEG files by libjpeg-turbo's own interface, or not at all: what is odd or damaged is left to `decode`.

Pillow still reads the header, so that sizes, modes, orientation and refusals are those of `decode`; only the pixels come
from simplejpeg, which lets other threads run meanwhile. Any complaint of its decoder gives None, never half a picture.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from jaxtyping import UInt8

from dinokit.images.containers import open_lazily
from dinokit.images.decode import DAMAGE, orientation_of
from dinokit.images.quiet import heard_warnings

MODES = {"Gray": "L", "YCbCr": "RGB"}  # colours as libjpeg finds them: what Pillow calls the image
FRAMES_READ = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive; all by Huffman codes
KEPT_BYTES = 48 << 20  # 16 megapixels; a fresh array costs as much in page faults as a tenth of the decoding


class _Scratch(threading.local):
    kept: UInt8[np.ndarray, "n"] | None = None


_scratch = _Scratch()


def scratch(size: int) -> UInt8[np.ndarray, "n"]:
    """`size` bytes that this thread may use until it asks again."""
    if size > KEPT_BYTES:
        return np.empty(size, np.uint8)
    if _scratch.kept is None or _scratch.kept.size < size:
        _scratch.kept = np.empty(size, np.uint8)
    return _scratch.kept[:size]


def turbo() -> ModuleType | None:
    """simplejpeg, if it is installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    module: ModuleType = simplejpeg
    return module


@dataclass(frozen=True)
class PlainJpeg:
    """A file whose header promises nothing odd. Size as stored; `orientation` is EXIF's, 1 to 8."""

    data: bytes
    height: int
    width: int
    mode: str
    orientation: int

    def pixels(self, divisor: int = 1) -> UInt8[np.ndarray, "h w 3"] | None:
        """RGB as stored, at 1 / `divisor` of the size (rounded up); None if the decoder complains about anything.

        The array is this thread's scratch: it is overwritten by the next image.
        """
        decoder = turbo()
        assert decoder is not None
        height, width = -(-self.height // divisor), -(-self.width // divisor)
        smaller = {"min_height": height, "min_width": width} if divisor > 1 else {}
        try:
            made: UInt8[np.ndarray, "h w 3"] = decoder.decode_jpeg(
                self.data, "RGB", strict=True, buffer=scratch(height * width * 3), **smaller
            )
        except ValueError:
            return None
        return made if made.shape == (height, width, 3) else None


def read_plain(data: bytes) -> PlainJpeg | None:
    """The header of a JPEG file of 8-bit grey or YCbCr, or None if anything about it is out of the ordinary."""
    decoder = turbo()
    frame = frame_of(data)
    if decoder is None or frame is None or frame.marker not in FRAMES_READ:
        return None
    with heard_warnings() as heard:
        try:
            image = open_lazily(io.BytesIO(data), "JPEG")
            orientation, notes = orientation_of(image)
            height, width, colours, _ = decoder.decode_jpeg_header(data, strict=True)
        except (*DAMAGE, KeyError):
            return None
    ordinary = not heard and not notes and (frame.height, frame.width) == (height, width) == (image.height, image.width)
    if not ordinary or MODES.get(colours) != image.mode or getattr(image, "bits", 8) != 8:
        return None
    return PlainJpeg(data, height, width, image.mode, orientation)


@dataclass(frozen=True)
class Frame:
    """How pixels are coded (the marker) and how many there are, as the file says."""

    marker: int
    height: int
    width: int


def frame_of(data: bytes) -> Frame | None:
    """The frame header; None if segments do not follow each other up to it."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = data[place + 5 : place + 9]
            return Frame(marker, int.from_bytes(size[:2], "big"), int.from_bytes(size[2:], "big"))
        if not (marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF):
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None
