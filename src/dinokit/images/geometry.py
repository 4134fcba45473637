"""Sizes and places: which size an image is resized to, and where a crop lies in it.

Each rule is a value; sizes are (height, width) in pixels. The rules differ between the worlds that DINOv2 lives in by a
pixel here and there, and a pixel matters to a network with patches of 14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

CropRounding = Literal["floor", "half_even"]
CROP_ROUNDINGS: tuple[CropRounding, ...] = get_args(CropRounding)


@dataclass(frozen=True)
class ShortestEdge:
    """Shorter side to `size`, longer side to int(size * long / short), cut off, as transformers and torchvision do."""

    size: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Size after the resize."""
        short, long = sorted((height, width))
        longer = int(self.size * long / short)
        return (self.size, longer) if height <= width else (longer, self.size)


@dataclass(frozen=True)
class Exact:
    """To `height` x `width`, whatever the shape was (Birder's squash)."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:  # noqa: ARG002 - one signature for all rules
        """Size after the resize."""
        return self.height, self.width


@dataclass(frozen=True)
class Cover:
    """The smallest size of the same shape that covers `height` x `width`, in whole numbers (Birder's simple_crop)."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Size after the resize."""
        if width * self.height >= height * self.width:
            return self.height, self.height * width // height
        return self.width * height // width, self.width


Resize = ShortestEdge | Exact | Cover
RESIZES: dict[str, type[Resize]] = {"shortest_edge": ShortestEdge, "exact": Exact, "cover": Cover}


class Place(NamedTuple):
    """A centred crop along one axis: pixels `start` to `stop` of the image, after `before` pixels of padding."""

    start: int
    stop: int
    before: int


def centre(length: int, crop: int, rounding: CropRounding) -> Place:
    """Where `crop` pixels lie in the middle of `length`; a shorter image is padded on both sides.

    "floor": half the difference cut off, the odd pixel of padding in front (transformers' Pillow processors).
    "half_even": half the difference rounded to even, the odd pixel of padding behind (torchvision's CenterCrop, which
    Meta's and Birder's transforms use).
    """
    spare = length - crop
    if spare < 0:
        before = math.ceil(-spare / 2) if rounding == "floor" else -spare // 2
        return Place(0, length, before)
    start = spare // 2 if rounding == "floor" else round(spare / 2)
    return Place(start, start + crop, 0)
