"""Targets of PH-Reg: a network's features averaged over shifted and mirrored images, in which what is fixed to a place fades.

Promise: the shifts depend on (seed, step) only; the average is that of `dinokit.repair`.
Source: Chen et al. 2025 (Vision Transformers with Self-Distilled Registers), section 3.
"""

from __future__ import annotations

import numpy as np

from dinokit.train.counter import Stream

Shifts = tuple[tuple[int, int], ...]


def draw_shifts(seed: int, step: int, count: int, grid: tuple[int, int], share: float) -> Shifts:
    """`count` shifts in whole patches, (down, right), each up to `share` of the grid either way.

    The first is none, so that every patch is seen at least once.
    """
    most = [int(share * side) for side in grid]
    numbers = Stream(seed, "denoising shifts").uniform(step, np.arange(1, count), 2)
    drawn = [tuple(int(u * (2 * m + 1)) - m for u, m in zip(row, most, strict=True)) for row in numbers.tolist()]
    return ((0, 0), *((down, right) for down, right in drawn))
