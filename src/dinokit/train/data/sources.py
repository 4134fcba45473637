"""Where images come from: anything with a length whose items `dinokit.images.decode` accepts.

Paths, bytes, arrays, tensors, a generator of images; and the pixels of one image, at no larger a scale than its crops need.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from dinokit.images import IMAGE_SUFFIXES, decode
from dinokit.images.containers import HEAD_BYTES, BinaryFile, identify, open_lazily
from dinokit.images.decode import DAMAGE, DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, ORIENTATION, Source
from dinokit.images.quiet import heard_warnings

# A JPEG is decoded at a half, a quarter or an eighth if every crop is still shrunk by this much afterwards, so that the codec's
# box filter is not what decides how it looks.
GAP = 2
REDUCTIONS = 8, 4, 2
SIDEWAYS = 5, 6, 7, 8  # EXIF orientations that swap width and height

Boxes = list[tuple[Int64[np.ndarray, "_ 4"], int]]  # of each size of crop, with that size
Choose = Callable[[int, int], Boxes]  # from (height, width)


@runtime_checkable
class Images(Protocol):
    """Images by index; items may be made when they are asked for."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int, /) -> Source:
        """One image, in any form that `decode` accepts."""
        ...


def image_files(folder: str | Path) -> list[str]:
    """Paths of the images below a folder, by suffix, sorted.

    Raises:
        ValueError: there is none.
    """
    found = [str(p) for p in sorted(Path(folder).rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]
    if not found:
        raise ValueError(
            f"{folder}: no image below it (by suffix: {', '.join(sorted(IMAGE_SUFFIXES))}). Give another folder."
        )
    return found


def pixels_and_boxes(source: Source, choose: Choose) -> tuple[UInt8[np.ndarray, "h w 3"], Boxes]:
    """An upright image, and the boxes that `choose` took from its size, both at a scale that suits the boxes.

    Raises:
        ImageError: as `decode`.
    """
    if isinstance(source, str | Path | bytes):
        found = _of_jpeg(source, choose)
        if found is not None:
            return found
    image = decode(source).image
    return np.array(image), choose(image.height, image.width)


def _of_jpeg(source: str | Path | bytes, choose: Choose) -> tuple[UInt8[np.ndarray, "h w 3"], Boxes] | None:
    """The same of a JPEG, decoded at a fraction of its size where that will do; None if it is none, or is damaged."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file, heard_warnings():
            if identify(file.read(HEAD_BYTES), DEFAULT_FORMATS) != "JPEG":
                return None
            image = open_lazily(cast("BinaryFile", file), "JPEG")
            height, width = _upright_size(image)
            if height * width > DEFAULT_MAX_PIXELS:
                return None
            boxes = choose(height, width)
            reduction = next((r for r in REDUCTIONS if _least_shrink(boxes) >= GAP * r and min(height, width) >= r), 1)
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            small = decode(image).image
    except DAMAGE:  # `decode` finds the same again, and says of which file
        return None
    if (small.height, small.width) == (height, width):
        return np.array(small), boxes
    scale = np.array([small.height / height, small.width / width] * 2)
    return np.array(small), [(_scaled(found, scale), size) for found, size in boxes]


def _upright_size(image: Image.Image) -> tuple[int, int]:
    sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _least_shrink(boxes: Boxes) -> float:
    return min((found[:, 2:].min() / size for found, size in boxes if len(found)), default=1.0)


def _scaled(found: Int64[np.ndarray, "n 4"], scale: np.ndarray) -> Int64[np.ndarray, "n 4"]:
    """Corners rounded to whole pixels of the smaller image."""
    corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)
    corners = np.rint(corners * scale).astype(np.int64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
