"""CorLoc: in how many images the one predicted box hits an object; exact at its boundary, beside two trivial baselines.

Everything is rational arithmetic, so a box of IoU exactly 0.5 is a hit in every type of numbers.
Source: Deselaers et al. 2010; as used by Simeoni et al. 2021 (LOST), section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import SupportsFloat

Number = int | float | Fraction | SupportsFloat
BoxLike = Sequence[Number]
HIT = Fraction(1, 2)
# Sides of the centre box as a share of the image's: about half of its area, which suits photographs best.
CENTRE_SIDE = Fraction(7, 10)


@dataclass(frozen=True)
class Score:
    """Hits among images."""

    hits: int
    images: int

    @property
    def percent(self) -> float:
        """CorLoc, 0 to 100; nan without images."""
        return 100.0 * self.hits / self.images if self.images else math.nan


@dataclass(frozen=True, kw_only=True)
class CorLoc:
    """A method, and beside it what the box of the whole image and a box in its middle would have scored."""

    method: Score
    whole_image: Score
    centre_box: Score
    skipped: int = 0

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON; percentages are None without images."""
        scores = {"corloc": self.method, "whole_image": self.whole_image, "centre_box": self.centre_box}
        percents = {name: score.percent if score.images else None for name, score in scores.items()}
        return {**percents, "hits": self.method.hits, "images": self.method.images, "skipped": self.skipped}


def iou(a: BoxLike, b: BoxLike) -> Fraction:
    """Intersection over union of two boxes (left, top, right, bottom), exact; 0 where both are empty.

    Raises:
        ValueError: a box that has not four finite numbers, or ends before it begins.
    """
    first, second = _exact(a), _exact(b)
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, Fraction(0)) * max(height, Fraction(0))
    union = _area(first) + _area(second) - overlap
    return overlap / union if union else Fraction(0)


def is_hit(box: BoxLike, truths: Iterable[BoxLike], threshold: Fraction = HIT) -> bool:
    """Whether `box` has an IoU of at least `threshold` with any of the true boxes.

    Raises:
        ValueError: as `iou`.
    """
    return any(iou(box, truth) >= threshold for truth in truths)


def whole_box(image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box of an image of (height, width) pixels."""
    return 0, 0, image_size[1], image_size[0]


def centre_box(image_size: tuple[int, int], side: Fraction = CENTRE_SIDE) -> tuple[Fraction, ...]:
    """A box in the middle of an image of (height, width) pixels, its sides this share of the image's."""
    height, width = image_size
    margin = (1 - side) / 2
    return width * margin, height * margin, width * (1 - margin), height * (1 - margin)


def corloc(
    boxes: Sequence[BoxLike],
    truths: Sequence[Sequence[BoxLike]],
    image_sizes: Sequence[tuple[int, int]],
    threshold: Fraction = HIT,
) -> CorLoc:
    """CorLoc of one box an image against all true boxes of each image; sizes are (height, width).

    Images without any true box are skipped, and counted as such.

    Raises:
        ValueError: lists of different lengths, or as `iou`.
    """
    hits = [0, 0, 0]
    counted = 0
    for box, true, size in zip(boxes, truths, image_sizes, strict=True):
        if not len(true):
            continue
        counted += 1
        for i, guess in enumerate((box, whole_box(size), centre_box(size))):
            hits[i] += is_hit(guess, true, threshold)
    method, whole, centre = (Score(number, counted) for number in hits)
    return CorLoc(method=method, whole_image=whole, centre_box=centre, skipped=len(boxes) - counted)


def _exact(box: BoxLike) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    if len(box) != 4:
        raise ValueError(f"a box has {len(box)} numbers; expected left, top, right, bottom.")
    left, top, right, bottom = (_fraction(value) for value in box)
    if right < left or bottom < top:
        raise ValueError(
            f"box {tuple(float(v) for v in (left, top, right, bottom))} ends before it begins; the order is left, top, right, bottom."
        )
    return left, top, right, bottom


def _fraction(value: Number) -> Fraction:
    """Of whatever numbers arrays and tensors hold; their floats are fractions already."""
    if isinstance(value, int | Fraction):
        return Fraction(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a box holds {number}; its numbers must be finite.")
    return Fraction(number)


def _area(box: tuple[Fraction, Fraction, Fraction, Fraction]) -> Fraction:
    return (box[2] - box[0]) * (box[3] - box[1])
