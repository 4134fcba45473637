"""`decode`: a path, bytes, file, Pillow image or array to upright 8-bit RGB, or an `ImageError` from a closed list.

Every decision on orientation, transparency, bit depth, frames and limits is made here and in `pixels`, once for all of
dinokit. Nothing of Pillow's global state is changed. Why each was decided: docs/adr/0004-image-decoding.md.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from dinokit.errors import ImageError
from dinokit.images.containers import (
    HEAD_BYTES,
    BinaryFile,
    count_frames,
    damaged_png_chunk,
    default_formats,
    identify,
    missing_tiff_part,
    open_lazily,
    size_in_header,
)
from dinokit.images.pixels import Colour, Window, array_to_rgb, pillow_to_rgb
from dinokit.images.quiet import heard_warnings

DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own error limit: a quarter of a gigabyte of RGB, twice
DEFAULT_FORMATS = default_formats()


@runtime_checkable
class Readable(Protocol):
    """A binary file, or anything else that gives bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; all of them for -1."""
        ...


Source = (
    str
    | Path
    | bytes
    | bytearray
    | memoryview
    | Readable
    | Image.Image
    | Shaped[np.ndarray, "..."]
    | Shaped[Tensor, "..."]
)

# What Pillow and its codecs raise on malformed bytes (its `Image.open` and plugins; found again by the fuzz test).
# UnidentifiedImageError is an OSError, UnicodeDecodeError a ValueError.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
UNSUPPORTED = re.compile(r"unknown pixel mode|[Uu]nsupported|[Nn]ot (yet )?supported|unknown data organization")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
# Readers whose image keeps the compressed file alive as long as it lives itself.
KEEPS_FILE = ("WEBP", "TIFF", "AVIF")


@dataclass(frozen=True)
class Decoded:
    """An upright RGB image and what its file said.

    `width` and `height` are in pixels, after the orientation was applied. `mode` is Pillow's name of the original
    pixels, for arrays the like of it ("RGB;16"). `frames` counts animation frames and pages, of which the first is
    here. `image` may be the very object that was decoded, if that was upright RGB already.
    """

    image: Image.Image
    width: int
    height: int
    mode: str
    frames: int
    format: str | None
    notes: tuple[str, ...] = ()


def decode(
    source: Source,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    window: Window | None = None,
    background: Colour | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> Decoded:
    """`source` as upright RGB, by these rules.

    * EXIF orientation is applied, whatever the source; damaged EXIF is ignored with a note.
    * Transparency is dropped, as `Image.convert("RGB")` does; with `background` (red, green, blue) it is composited.
    * 16-bit grey is scaled by its bit depth (65535 becomes 255), or by `window` = (low, high), the values of black and
      white. 32-bit integers and floats need a window. Images of 8 bits ignore it. Colour files of 16 bits keep their
      high byte.
    * CMYK is converted without colour profiles. The first frame counts.
    * More than `max_pixels` (height times width, from the header, before pixels are decoded) is refused.
    * Files are read whatever their name says, from their beginning, if their first bytes belong to one of `formats`.
    * Arrays and tensors: see `dinokit.images.pixels.array_to_rgb`.

    Raises:
        ImageError: `zero_byte`, `not_image`, `truncated`, `unsupported_mode`, `too_many_pixels`, `not_a_file`,
            `permission` or `nonfinite_pixels`.
        TypeError: `source` is none of the types above.
        ValueError: an option is out of its range.
    """
    check_options(max_pixels, window, background)
    if isinstance(source, Image.Image):
        name = f"{source.format or 'Pillow'} image of mode {source.mode}"
        with heard_warnings() as heard:
            frames = _frames_of_pillow(source)
            return _finish(source, name, max_pixels, window, background, frames, heard)
    if isinstance(source, np.ndarray | Tensor):
        name = f"array {tuple(source.shape)} of {source.dtype}"
        image, mode, notes = array_to_rgb(source, name, window, background)
        _check_pixels(name, image.height, image.width, max_pixels)
        return Decoded(image, image.width, image.height, mode, 1, None, tuple(notes))
    with opened(source) as (file, name), heard_warnings() as heard:
        head = file.read(HEAD_BYTES)
        kind = _identified(head, name, formats)
        size = size_in_header(head, kind)
        if size is not None:
            _check_pixels(name, *size, max_pixels)
        with _malformed(name, heard):
            # Before Pillow opens it, which counts on nobody else moving in the file.
            damaged = damaged_png_chunk(file) if kind == "PNG" else None
            frames = count_frames(file, kind)
            file.seek(0, os.SEEK_END)
            file_bytes = file.tell()
            image = open_lazily(file, kind)
            missing = missing_tiff_part(image, file_bytes) if kind == "TIFF" else None
        if missing:
            raise ImageError("truncated", f"{name}: {missing}. Get the file again.")
        if damaged:
            raise ImageError(
                "truncated",
                f"{name}: the checksum of PNG chunk {damaged} is wrong, so pixels may be. Get the file again.",
            )
        return _finish(image, name, max_pixels, window, background, frames or _frames_of_pillow(image), heard)


def _finish(
    image: Image.Image,
    name: str,
    max_pixels: int,
    window: Window | None,
    background: Colour | None,
    frames: int,
    heard: list[str],
) -> Decoded:
    mode, kind = image.mode, image.format
    _check_pixels(name, image.height, image.width, max_pixels)
    with _malformed(name, heard):
        image.load()
    orientation, notes = orientation_of(image)
    with _malformed(name, heard, ()):
        rgb, more = pillow_to_rgb(image, name, window, background)
        if orientation in UPRIGHT:
            rgb = rgb.transpose(UPRIGHT[orientation])
        elif rgb is image and kind in KEEPS_FILE:
            rgb = rgb.copy()
    notes += [*more, *(f"metadata: {text}" for text in heard[:4])]
    return Decoded(rgb, rgb.width, rgb.height, mode, frames, kind, tuple(notes))


def orientation_of(image: Image.Image) -> tuple[int, list[str]]:
    """EXIF orientation, 1 to 8 (1: as stored), and notes on what was wrong with it."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        readable = bool(len(image.getexif())) or not image.info.get("exif")
    except DAMAGE as error:
        return 1, [f"EXIF is damaged and was ignored ({type(error).__name__})"]
    if not readable:  # Pillow raised on it once, when it opened the file, and keeps quiet since
        return 1, ["EXIF is damaged and was ignored"]
    for known in range(1, 9):
        if value == known:
            return known, []
    return 1, [f"EXIF orientation is {value!r}, not 1 to 8; ignored"]


def _frames_of_pillow(image: Image.Image) -> int:
    try:
        return max(1, int(getattr(image, "n_frames", 1)))
    except DAMAGE:  # its file is closed or ends early; the frame that is there can still be used
        return 1


def _identified(head: bytes, name: str, formats: Sequence[str]) -> str:
    if not head:
        raise ImageError("zero_byte", f"{name}: the file is empty. Get it again.")
    kind = identify(head, formats)
    if kind is None:
        other = identify(head, DEFAULT_FORMATS)
        found = f"is {other}" if other else f"begins with {head[:8]!r}"
        raise ImageError(
            "not_image", f"{name}: {found}; accepted formats are {', '.join(formats)}. Convert it to one of them."
        )
    return kind


@contextmanager
def _malformed(name: str, heard: Sequence[str], damage: tuple[type[Exception], ...] = DAMAGE) -> Iterator[None]:
    """Turn what Pillow raises on malformed bytes, or for want of memory, into our errors.

    A file is unsupported only if Pillow did not also complain (`heard`) about how it is put together.
    """
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            "too_many_pixels", f"{name}: {error} The limit is Pillow's (Image.MAX_IMAGE_PIXELS)."
        ) from error
    except MemoryError as error:
        raise ImageError(
            "too_many_pixels", f"{name}: needs more memory than there is. Shrink it or lower max_pixels."
        ) from error
    except damage as error:
        what = str(error) or type(error).__name__
        if UNSUPPORTED.search(what) and not heard:
            message = f"{name}: a variant of its format that Pillow can't read ({what}). Save it as 8-bit PNG or JPEG."
            raise ImageError("unsupported_mode", message) from error
        raise ImageError("truncated", f"{name}: damaged or cut short ({what}). Get the file again.") from error


@contextmanager
def opened(source: object) -> Iterator[tuple[BinaryFile, str]]:
    """The source as a seekable binary file at its beginning, and a name for messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), f"{len(source)} bytes"
    elif isinstance(source, str | os.PathLike):
        with _opened_path(os.fspath(source)) as file:
            yield file, str(source)
    elif hasattr(source, "read"):
        yield _rewound(cast("BinaryFile", source)), str(getattr(source, "name", "file object"))
    else:
        raise TypeError(
            f"an image can't be decoded from {type(source).__name__}; give a path, bytes, a binary file, a PIL image, "
            f"an array or a tensor."
        )


def _opened_path(path: str) -> BufferedReader:
    hint = " URLs are not fetched; download it first." if "://" in path else ""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except PermissionError as error:
        raise ImageError("permission", f"{path}: may not be read by this user. Change its permissions.") from error
    except (OSError, ValueError) as error:
        dangling = "a link to nothing" if os.path.islink(path) else getattr(error, "strerror", None) or error
        raise ImageError("not_a_file", f"{path}: {dangling}. Give the path of an image file.{hint}") from error
    what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
    raise ImageError("not_a_file", f"{path}: is {what}. Give the path of an image file.")


def _rewound(file: BinaryFile) -> BinaryFile:
    try:
        file.seek(0)
    except (AttributeError, OSError):  # a pipe or a response: no way back, so it is read whole
        data = file.read()
    else:
        data = file.read(0)
        if type(data) is bytes:
            return file
    if type(data) is not bytes:
        raise TypeError("the file object gives text; open it in binary mode ('rb').")
    return io.BytesIO(data)


def _check_pixels(name: str, height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"{name}: {width} x {height} is {height * width:,} pixels; the limit is {max_pixels:,}. "
            f"Shrink it, or raise max_pixels if you trust the file.",
        )


def check_options(max_pixels: int, window: Window | None, background: Colour | None) -> None:
    """Those of `decode`.

    Raises:
        ValueError: one is out of its range.
    """
    if max_pixels < 1:
        raise ValueError(f"max_pixels is {max_pixels}; it must be at least 1.")
    if window is not None:
        low, high = window
        if not (math.isfinite(high - low) and low < high):
            raise ValueError(f"window is {window}; it must be (low, high), finite, low below high.")
    if background is not None and (len(background) != 3 or not all(0 <= value <= 255 for value in background)):
        raise ValueError(f"background is {background}; it must be (red, green, blue), each 0 to 255.")
