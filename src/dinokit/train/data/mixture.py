"""`Mixture`: textures, mosaics of them, dead leaves and fractals, textured shapes with depth, strokes of a pen; no photograph.

Promise: image i of a seed and size is always the same; kinds come in turn, so any range of indices holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dinokit.train.data.calculated import Calculated
from dinokit.train.data.mosaic import Mosaic
from dinokit.train.data.procedural import Procedural
from dinokit.train.data.shapetex import ShapeTex
from dinokit.train.data.strokes import Strokes
from dinokit.train.data.textures import Textures

# Kinds by place within a round of eight
ROUND = ("plate", "leaves", "mosaic", "textures", "plate", "leaves", "shapes", "strokes")
FINER = 2  # `Textures` are made at half the size, and so have periods that outlast a crop's shrinking
PERIODS = 4.0, 11.0


@dataclass(frozen=True)
class Mixture(Calculated):
    """`count` images of `size` x `size` pixels; by index, or many at once with `batch`.

    Of eight in a row, two are a single texture, two dead leaves, and one each a mosaic, one of `Textures`, a scene of `ShapeTex`,
    strokes.
    """

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
        kinds = np.array(ROUND)[wanted % len(ROUND)]
        sets: dict[str, Calculated] = {
            "plate": Mosaic(self.count, self.size, self.seed, regions=(1, 1), periods=PERIODS, turn=np.pi),
            "mosaic": Mosaic(self.count, self.size, self.seed, periods=PERIODS, turn=np.pi),
            "leaves": Procedural(self.count, self.size, self.seed),
            "strokes": Strokes(self.count, self.size, self.seed),
        }
        for kind, images in sets.items():
            out[kinds == kind] = images.batch(wanted[kinds == kind].tolist())
        scenes = ShapeTex(self.count, self.size, self.seed)
        for row in np.flatnonzero(kinds == "shapes"):
            out[row] = scenes[int(wanted[row])]
        plain = kinds == "textures"
        # classes of textures come in turn by index, of which every eighth would give only some
        textures = Textures(self.count, self.size // FINER, self.seed).batch((wanted[plain] // len(ROUND)).tolist())
        out[plain] = textures.repeat(FINER, axis=1).repeat(FINER, axis=2)
        return out
