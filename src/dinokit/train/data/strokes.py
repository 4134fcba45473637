"""`Strokes`: a few curved lines of a pen on a plain ground; no letter and no digit is among them but by chance.

Promise: image i of a seed and size is always the same.
Source: Kataoka et al. 2022 (contours are what a network learns most from in images that are calculated).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinokit.train.counter import Stream
from dinokit.train.data.calculated import Calculated
from dinokit.train.data.shapetex import two_colours

FINER = 3  # drawn this much larger, so that edges are smooth
POINTS = 24  # of a line between two corners
MOST_LINES, MOST_CORNERS = 3, 6


@dataclass(frozen=True)
class Strokes(Calculated):
    """`count` images of `size` x `size` pixels; by index, or many at once with `batch`."""

    count: int
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_extent(16)

    def batch(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n s s 3"]:
        """Several images."""
        made = [self._made(int(i)) for i in indices]
        return np.stack(made) if made else np.empty((0, self.size, self.size, 3), np.uint8)

    def _made(self, index: int) -> UInt8[np.ndarray, "s s 3"]:
        rng = Stream(self.seed, "strokes").generator(0, index)
        canvas = Image.new("L", (FINER * self.size,) * 2)
        draw = ImageDraw.Draw(canvas)
        width = rng.uniform(0.04, 0.14) * canvas.width
        for _ in range(int(rng.integers(1, MOST_LINES + 1))):
            line = curve(
                rng.uniform(0.12, 0.88, (int(rng.integers(2, MOST_CORNERS + 1)), 2)), closed=rng.random() < 0.25
            )
            _drawn(draw, line * canvas.width, width)
        cover = np.asarray(canvas.reduce(FINER), np.float64)[..., None] / 255
        ground, ink = two_colours(rng)
        tilt, away = rng.uniform(-0.3, 0.3, 2), (np.arange(self.size) + 0.5) / self.size - 0.5
        light = 1 + tilt[0] * away[:, None] + tilt[1] * away
        rgb = (ground + cover * (ink - ground)) * light[..., None]
        rgb += rng.uniform(0.0, 0.04) * rng.standard_normal(rgb.shape)
        return np.asarray(np.clip(rgb, 0, 1) * 255 + 0.5, np.uint8)


def curve(corners: Float64[np.ndarray, "k 2"], *, closed: bool) -> Float64[np.ndarray, "n 2"]:
    """A smooth line through all corners (Catmull and Rom's), back to the first if `closed`."""
    if closed:
        before, after = np.roll(corners, 1, axis=0), np.roll(corners, -2, axis=0)
        start, end = corners, np.roll(corners, -1, axis=0)
    else:
        padded = np.concatenate([corners[:1], corners, corners[-1:]])
        before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, POINTS)[:, None, None]
    terms = (
        2 * start + (end - before) * t + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )  # fmt: skip
    found: NDArray[np.float64] = terms.transpose(1, 0, 2).reshape(-1, 2) / 2
    return found


def _drawn(draw: ImageDraw.ImageDraw, line: Float64[np.ndarray, "n 2"], width: float) -> None:
    """With round ends and joints."""
    draw.line(line.ravel().tolist(), fill=255, width=round(width))
    for x, y in line:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
