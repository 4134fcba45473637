"""`Calculated`: what sets of images without files have in common; a set says how it makes a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor


class Calculated(ABC):
    """`count` images of `size` x `size` pixels; by index, or many at once with `batch`."""

    count: int
    size: int

    def _check_extent(self, least: int) -> None:
        if self.count < 1 or self.size < least:
            raise ValueError(
                f"{self.count} images of {self.size} pixels: there must be at least one, of at least {least} pixels."
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "s s 3"]:
        """One image."""
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        image: NDArray[np.uint8] = self.batch([index])[0]
        return image

    @abstractmethod
    def batch(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n s s 3"]:
        """Several images, faster than one by one."""

    def tensor(self, start: int = 0, stop: int | None = None) -> UInt8[Tensor, "n 3 s s"]:
        """Images `start` to `stop`, as `TensorBatches` takes them; all without."""
        made = self.batch(range(start, self.count if stop is None else stop))
        return torch.from_numpy(np.ascontiguousarray(made.transpose(0, 3, 1, 2)))
