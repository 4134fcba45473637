"""In which order images are seen: an endless sequence of visits, each epoch a permutation, calculated and not stored.

Promise: place p of the sequence is a function of (number of images, seed, p); so is everything of a run that continues at a step.
Source: Black and Rogaway 2002 (Ciphers with arbitrary finite domains), the generalised Feistel construction and cycle walking.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

ROUNDS = 10


@dataclass(frozen=True)
class Order:
    """The sequence of visits to `num_images` images.

    A visit is a number: epoch * num_images + index of the image. It names what is random in how the image is seen, and comes once
    in a run, so that an image at the end of an epoch and again at the beginning of the next is seen differently in one batch.
    """

    num_images: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.num_images < 1 << 62:
            raise ValueError(f"there are {self.num_images} images to order; there must be at least one.")

    def visits(self, places: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The visits at these places of the sequence."""
        epochs, inside = np.divmod(np.asarray(places, np.int64), self.num_images)
        if self.shuffle:
            inside = inside.copy()
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                inside[here] = permuted(inside[here], self.num_images, f"{self.seed}/order/{epoch}")
        return epochs * self.num_images + inside

    def images(self, visits: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Indices of the visited images."""
        return visits % self.num_images


@dataclass(frozen=True)
class Plan:
    """Which visits a process makes in a step. `batch_size` is that of all processes together.

    The shares of all processes, after each other, are the whole batch: the sequence does not depend on how many there are.
    """

    order: Order
    batch_size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world < 1 or self.batch_size % self.world or not 0 <= self.rank < self.world:
            raise ValueError(
                f"a batch of {self.batch_size} images for process {self.rank} of {self.world}: processes are numbered from 0, "
                f"and the batch must divide among them evenly."
            )

    def visits(self, step: int) -> Int64[np.ndarray, " b"]:
        """This process's share of a step."""
        own = self.batch_size // self.world
        first = step * self.batch_size + self.rank * own
        return self.order.visits(np.arange(first, first + own, dtype=np.int64))


def permuted(places: Int64[np.ndarray, " n"], size: int, key: str) -> Int64[np.ndarray, " n"]:
    """Where a permutation of 0 to `size` - 1, chosen by `key`, takes these places; in constant memory.

    A place is written as (left, right) in a rectangle of at least `size` cells; each round adds a hash of one to the other. What
    lands on a surplus cell goes round again.
    """
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=64).digest(), np.uint64)
    out = np.array(places, np.int64)
    moving = np.arange(len(out))
    while len(moving):
        left, right = np.divmod(out[moving], columns)
        for i in range(ROUNDS):
            round_key = keys[i % len(keys)] + np.uint64(i)
            if i % 2:
                left = (left + _hash(right, round_key, rows)) % rows
            else:
                right = (right + _hash(left, round_key, columns)) % columns
        out[moving] = left * columns + right
        moving = moving[out[moving] >= size]
    return out


def _hash(values: NDArray[np.int64], key: np.uint64, below: int) -> NDArray[np.int64]:
    """Numbers 0 to `below` - 1: SplitMix64's finaliser (Steele et al. 2014) of value and key, twice."""
    x = values.astype(np.uint64) + key
    for _ in range(2):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = (x ^ (x >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)
    return ((x >> np.uint64(32)) * np.uint64(below) >> np.uint64(32)).astype(np.int64)
