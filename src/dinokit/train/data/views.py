"""`Views`: the crops of a batch as 8 bits, with what they are crops of; what workers hand over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from dinokit.errors import ImageErrorCode


@dataclass(frozen=True)
class Unreadable:
    """An image whose place in the batch another one took."""

    index: int
    code: ImageErrorCode
    message: str


@dataclass(frozen=True)
class Views:
    """Crops of b images, crop by crop: all images' first crops, then all images' second ones, and so on.

    `visits` name what is random about each; `images` are the indices of the images that were read.
    """

    global_crops: UInt8[Tensor, "gb 3 h w"]
    local_crops: UInt8[Tensor, "lb 3 k k"]
    visits: Int64[Tensor, " b"]
    images: Int64[Tensor, " b"]
    unreadable: tuple[Unreadable, ...] = ()

    def to(self, device: torch.device | str) -> Views:
        """The same on another device."""
        return self._of([x.to(device, non_blocking=True) for x in self._tensors()])

    def pin_memory(self) -> Views:
        """The same in memory from which copies to an accelerator don't wait."""
        return self._of([x.pin_memory() for x in self._tensors()])

    def _tensors(self) -> list[Tensor]:
        return [self.global_crops, self.local_crops, self.visits, self.images]

    def _of(self, tensors: list[Tensor]) -> Views:
        global_crops, local_crops, visits, images = tensors
        return Views(global_crops, local_crops, visits, images, self.unreadable)
