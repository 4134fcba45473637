"""Random numbers that are a function of (seed, stream name, step, sample id) and of nothing else.

Promise: neither the number of workers or processes, nor the order of samples, nor what was drawn before changes a number.
Source: Philox-4x32-10, Salmon et al. 2011 (Parallel random numbers: as easy as 1, 2, 3), sections 4 and 5.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

Words = TypeVar("Words", NDArray[np.int64], Tensor)
Samples = NDArray[np.int64]

LOW = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four pseudo-random words of 32 bits for each counter of four such words; NumPy arrays or tensors of int64.

    A product's sign bit is one of its bits: shifting right and masking give the upper word whatever the sign.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * (MULTIPLIERS[0] - (1 << 32)), c2 * (MULTIPLIERS[1] - (1 << 32))
        # the multiplier less 2^32 fits a signed word; the upper half of the product is short of c then
        high0, high1 = ((p0 >> 32) + c0) & LOW, ((p1 >> 32) + c2) & LOW
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & LOW, high0 ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Stream:
    """A named sequence of random numbers for each (step, sample); other names give independent ones."""

    seed: int
    name: str

    @property
    def key(self) -> tuple[int, int]:
        """Philox's key: a hash of seed and name."""
        digest = hashlib.blake2b(f"{self.seed}/{self.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def words(
        self, step: int, samples: Samples, first: int | Samples = 0, count: int = 1
    ) -> Int64[np.ndarray, "n c 4"]:
        """Blocks `first` to `first + count` of each sample: four words of 32 bits each. `first` may differ by sample."""
        shape = (len(samples), count)
        sample = np.broadcast_to(np.asarray(samples, np.int64)[:, None], shape)
        block = np.broadcast_to(np.reshape(first, (-1, 1)) + np.arange(count, dtype=np.int64), shape)
        counter = (block & LOW, np.full(shape, step & LOW, np.int64), sample & LOW, sample >> 32 & LOW)
        return np.stack(philox(counter, self.key), axis=-1)

    def uniform(self, step: int, samples: Samples, count: int = 1) -> Float64[np.ndarray, "n c"]:
        """`count` numbers for each sample, in (0, 1) without its ends, in steps of 2^-32."""
        blocks = self.words(step, samples, 0, -(-count // 4))
        return unit(blocks.reshape(len(blocks), blocks.shape[1] * 4)[:, :count])

    def uniform_tensor(self, step: int, samples: Int64[Tensor, " n"], count: int = 1) -> Float64[Tensor, "n c"]:
        """The same numbers, calculated where `samples` lies."""
        shape = (len(samples), -(-count // 4))
        sample = samples[:, None].expand(shape)
        block = torch.arange(shape[1], device=samples.device).expand(shape)
        counter = (block, torch.full_like(block, step & LOW), sample & LOW, (sample >> 32) & LOW)
        words = torch.stack(philox(counter, self.key), dim=-1).flatten(1)[:, :count]
        return (words.double() + 0.5) * 2.0**-32

    def generator(self, step: int, sample: int) -> np.random.Generator:
        """NumPy's generator for one sample, for draws whose number is not known beforehand."""
        low, high = self.key
        key = np.array([low | high << 32, 0], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, sample & (1 << 64) - 1]))


def unit(words: Int64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Words of 32 bits as numbers in (0, 1), without its ends."""
    return (words + 0.5) * 2.0**-32
