"""Plain JPEG files by libjpeg-turbo's own interface, or not at all: what is odd or damaged is left to `decode`.

Pillow still reads the header, so that sizes, modes, orientation and refusals are those of `decode`; only the pixels come
from simplejpeg, which lets other threads run meanwhile. Any complaint of its decoder gives None, never half a picture;
but that pixels are left after the rows that were asked for is no complaint.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from jaxtyping import UInt8

from dinokit.images.containers import open_lazily
from dinokit.images.decode import DAMAGE, orientation_of
from dinokit.images.fast_space import kept
from dinokit.images.quiet import heard_warnings

MODES = {"Gray": "L", "YCbCr": "RGB"}  # colours as libjpeg finds them: what Pillow calls the image
FRAMES_READ = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive; all by Huffman codes
SEQUENTIAL = (0xC0, 0xC1)
# Rows left out at the bottom, at least; more than the tallest row of blocks has, so that one is left out whatever the file.
LEAST_CUT = 64
# libjpeg's words for: every row was there, no complaint before this one, and what follows them is coded pixels up to the end.
REST_UNREAD = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")


def turbo() -> ModuleType | None:
    """simplejpeg, if it is installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    module: ModuleType = simplejpeg
    return module


@cache
def cuts_known() -> bool:
    """Whether this decoder, told of fewer rows than there are, gives them and says what follows in the words we know."""
    decoder = turbo()
    if decoder is None:
        return False
    levels = (np.arange(3 * LEAST_CUT * 32) * 37 % 251).astype(np.uint8).reshape(-1, 32, 1)
    data: bytes = decoder.encode_jpeg(levels, quality=90, colorspace="GRAY")
    frame = frame_of(data)
    return frame is not None and _cut(data, frame, LEAST_CUT, 1, "GRAY") is not None


def _cut(
    data: bytes, frame: Frame, rows: int, divisor: int, colours: str = "RGB"
) -> UInt8[np.ndarray, "rows w c"] | None:
    """The first `rows` of the image at 1 / `divisor`, the last but one of them exact; None if anything in the file is odd.

    The decoder is told that the image ends there. It then warns of the coded rows that follow, in words that say that these
    are followed by the end of the image and nothing else: what `decode` takes such a file for does not depend on them.
    """
    decoder = turbo()
    assert decoder is not None
    width = -(-frame.width // divisor)
    shorter = kept("file", len(data))
    shorter[:] = np.frombuffer(data, np.uint8)
    shorter[frame.place : frame.place + 2] = divmod(rows * divisor, 256)
    smaller = {"min_height": rows, "min_width": width} if divisor > 1 else {}
    channels = 3 if colours == "RGB" else 1
    pixels = kept("pixels", rows * width * channels)
    try:
        decoder.decode_jpeg(shorter, colours, strict=True, buffer=pixels, **smaller)
    except ValueError as complaint:
        return pixels.reshape(rows, width, channels) if REST_UNREAD.fullmatch(str(complaint)) else None
    return None  # nothing followed, so rows are missing that the file promises


@dataclass(frozen=True)
class PlainJpeg:
    """A file whose header promises nothing odd. Size as stored; `orientation` is EXIF's, 1 to 8."""

    data: bytes
    frame: Frame
    mode: str
    orientation: int

    def pixels(self, divisor: int = 1, rows: int | None = None) -> UInt8[np.ndarray, "h w 3"] | None:
        """RGB as stored, at 1 / `divisor` of the size (rounded up); None if the decoder complains about anything.

        The first `rows` alone where that is sooner. The array is this thread's space: it is overwritten by the next image.
        """
        decoder = turbo()
        assert decoder is not None
        height, width = -(-self.frame.height // divisor), -(-self.frame.width // divisor)
        if rows is not None and self.frame.one_scan and (height - rows - 1) * divisor >= LEAST_CUT and cuts_known():
            first = _cut(self.data, self.frame, rows + 1, divisor)
            if first is not None:
                return first[:rows]
        smaller = {"min_height": height, "min_width": width} if divisor > 1 else {}
        try:
            made: UInt8[np.ndarray, "h w 3"] = decoder.decode_jpeg(
                self.data, "RGB", strict=True, buffer=kept("pixels", height * width * 3), **smaller
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
    return PlainJpeg(data, frame, image.mode, orientation)


@dataclass(frozen=True)
class Frame:
    """How pixels are coded (the marker) and how many there are, as the file says.

    `place` is where in the file the height stands. `one_scan`: all colours in one go and without restarts, not
    progressively, so that a row's code is followed by that of the next to the end.
    """

    marker: int
    height: int
    width: int
    place: int
    one_scan: bool


def frame_of(data: bytes) -> Frame | None:
    """The frame header; None if segments do not follow each other up to it."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = data[place + 5 : place + 9]
            height, width = int.from_bytes(size[:2], "big"), int.from_bytes(size[2:], "big")
            return Frame(marker, height, width, place + 5, marker in SEQUENTIAL and _one_scan(data, place))
        if not _before_pixels(marker):
            return None
        place = _next(data, place)
    return None


def _one_scan(data: bytes, frame: int) -> bool:
    """Whether the first scan after the frame header at `frame` has all of its colours, and no header spoke of restarts."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xDA:
            return data[place + 4] == data[frame + 9]
        if marker == 0xDD or not (place == frame or _before_pixels(marker)):
            return False
        place = _next(data, place)
    return False


def _before_pixels(marker: int) -> bool:
    """Tables, comments and applications' own."""
    return marker in (0xC4, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF


def _next(data: bytes, place: int) -> int:
    return place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
