"""`Mosaic`: regions of texture that meet at crooked borders, with labels and depth of every pixel.

Promise: image i of a seed and of the same settings is always the same; a region's colours say neither its texture nor its depth. The
texture is painted on a slanted plane, so that its grain alone tells the depth. Source: Gibson 1950 (depth from the texture gradient).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from dinokit.train.counter import Stream
from dinokit.train.data.calculated import Calculated
from dinokit.train.data.patterns import NoiseFields
from dinokit.train.data.shapes import TEXTURE_NAMES, texture
from dinokit.train.data.shapetex import Plane, plane, two_colours

NEAR, FAR = 0.6, 2.0
SLANT = 0.35  # of a plane's inverse depth, from the image's middle to its edge, as a share of the whole range
CROOKED = 0.12  # of the image's width: how far noise moves a border
SMOOTH = 3  # the noise field with the fewest high frequencies


@dataclass(frozen=True)
class Patchwork:
    """An image and what is where: `semantic` indexes the textures of its `Mosaic`, `depth` is 0.6 (near) to 2 (far)."""

    pixels: UInt8[np.ndarray, "s s 3"]
    semantic: UInt8[np.ndarray, "s s"]
    depth: Float32[np.ndarray, "s s"]


@dataclass(frozen=True)
class Mosaic(Calculated):
    """`count` images of `regions` (fewest, most) regions, each with a texture of its own; by index, or many with `batch`.

    `periods` are those of a texture across the image at depth 1, least and most; `turn` the largest angle in radians, either way.
    """

    count: int
    size: int = 64
    seed: int = 0
    textures: tuple[str, ...] = TEXTURE_NAMES
    regions: tuple[int, int] = (2, 5)
    periods: tuple[float, float] = (8.0, 8.0)
    turn: float = 0.4
    noise: NoiseFields = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_extent(16)
        if not 1 <= self.regions[0] <= self.regions[1] <= len(self.textures):
            raise ValueError(
                f"regions are {self.regions}: fewest and most, at least 1, and at most the {len(self.textures)} textures."
            )
        if not 0 < self.periods[0] <= self.periods[1]:
            raise ValueError(f"periods are {self.periods}; they must be two positive numbers, least and most.")
        object.__setattr__(self, "noise", NoiseFields(self.seed))

    def batch(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n s s 3"]:
        """Several images."""
        made = [self.scene(int(i)).pixels for i in indices]
        return np.stack(made) if made else np.empty((0, self.size, self.size, 3), np.uint8)

    def scene(self, index: int) -> Patchwork:
        """One image with its labels and depth."""
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        rng = Stream(self.seed, "mosaic").generator(0, index)
        line = plane((np.arange(self.size) + 0.5) / self.size - 0.5)
        x, y = np.tile(line, (self.size, 1)), np.tile(line[:, None], (1, self.size))
        number = int(rng.integers(self.regions[0], self.regions[1] + 1))
        owner = self._owners(rng, x, y, number)
        kinds = rng.permutation(len(self.textures))[:number]
        rgb, depth = np.zeros((self.size, self.size, 3)), np.zeros_like(x)
        for region, kind in enumerate(kinds.tolist()):
            here = owner == region
            paint, away = self._painted(rng, self.textures[kind], x, y)
            rgb[here], depth[here] = paint[here], away[here]
        rgb += rng.uniform(0.01, 0.04) * rng.standard_normal((self.size, self.size, 1))
        pixels = np.asarray(np.clip(rgb, 0, 1) * 255 + 0.5, np.uint8)
        return Patchwork(pixels, kinds.astype(np.uint8)[owner], depth)

    def _owners(self, rng: np.random.Generator, x: Plane, y: Plane, number: int) -> NDArray[np.int64]:
        """Which region each pixel belongs to: that of the nearest of so many points, places being moved by noise."""
        sites = rng.uniform(-0.5, 0.5, (number, 2))
        shift = rng.uniform(0, 128, 2)
        across = x + 2 * CROOKED * (self.noise.between(SMOOTH, plane(y * 40 + 64 + shift[0]), plane(x * 40 + 64)) - 0.5)
        down = y + 2 * CROOKED * (self.noise.between(SMOOTH, plane(x * 40 + 64 + shift[1]), plane(y * 40 + 64)) - 0.5)
        away = np.stack([(across - a) ** 2 + (down - b) ** 2 for a, b in sites])
        return np.asarray(away.argmin(axis=0), np.int64)

    def _painted(
        self, rng: np.random.Generator, name: str, x: Plane, y: Plane
    ) -> tuple[NDArray[np.floating[Any]], Plane]:
        """A slanted plane with this texture in two random colours, and its depth, over the whole image."""
        low, high = 1 / FAR, 1 / NEAR
        middle, slant = rng.uniform(low, high), rng.uniform(-SLANT, SLANT, 2) * (high - low)
        depth = plane(1 / np.clip(middle + slant[0] * x + slant[1] * y, low, high))
        periods, angle, shift = rng.uniform(*self.periods), rng.uniform(-self.turn, self.turn), rng.uniform(0, 64, 2)
        c, s = periods * np.cos(angle), periods * np.sin(angle)
        u, v = plane((c * x - s * y) * depth + shift[0]), plane((s * x + c * y) * depth + shift[1])
        grain = self.noise.between(SMOOTH, 6 * v, 6 * u)
        value = texture(name, u, v, plane(3.2 * grain - 1.6))
        first, second = two_colours(rng)
        return first + value[..., None] * (second - first), depth
