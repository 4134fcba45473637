"""`Mixture`: half dead leaves and fractals, three eighths textured shapes with depth, one eighth plain textures; no photograph.

Promise: image i of a seed and size is always the same; kinds come in turn, so any range of indices holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dinokit.train.data.calculated import Calculated
from dinokit.train.data.procedural import Procedural
from dinokit.train.data.shapetex import ShapeTex
from dinokit.train.data.textures import Textures

ROUND = 8
SHAPES, TEXTURES = (1, 4, 6), (3,)  # places within a round of eight; the others are dead leaves
FINER = 2  # textures are made at half the size, and so have periods that outlast a crop's shrinking


@dataclass(frozen=True)
class Mixture(Calculated):
    """`count` images of `size` x `size` pixels; by index, or many at once with `batch`."""

    count: int
    size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 16 or self.size % FINER:
            raise ValueError(
                f"{self.count} images of {self.size} pixels: there must be at least one, of an even number of at least 16 pixels."
            )

    def batch(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n s s 3"]:
        """Several images, faster than one by one."""
        wanted = np.array(list(indices), np.int64)
        out = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        place = wanted % ROUND
        shapes, plain = np.isin(place, SHAPES), np.isin(place, TEXTURES)
        scenes = ShapeTex(self.count, self.size, self.seed)
        for row in np.flatnonzero(shapes):
            out[row] = scenes[int(wanted[row])]
        # classes of textures come in turn by index, of which every eighth would give only some
        textures = Textures(self.count, self.size // FINER, self.seed).batch((wanted[plain] // ROUND).tolist())
        out[plain] = textures.repeat(FINER, axis=1).repeat(FINER, axis=2)
        rest = ~(shapes | plain)
        out[rest] = Procedural(self.count, self.size, self.seed).batch(wanted[rest].tolist())
        return out
