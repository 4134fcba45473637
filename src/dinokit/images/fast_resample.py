"""A crop of a resized image by torch's 8-bit kernels: Pillow's order and roundings at a tenth of its time.

The first pass is torch's, with weights of 15 bits, so that a sum near the middle of two grey levels may fall to the other
side; the second keeps Pillow's weights, so that this seldom shows. What that bounds and what not: docs/preprocessing.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from dinokit.images.fast_space import Use, kept
from dinokit.images.resize import KERNELS, Box, Resample

BAND = 8  # output pixels whose weights share one small dense matrix

_EIGHT_BIT: dict[str, Callable[..., Tensor]] = {
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
}
VECTORISED = tuple(_EIGHT_BIT)  # the filters that `resample_crop` knows


@dataclass(frozen=True)
class Axis:
    """One axis of a resize: `size` source pixels, of which `length` (not always whole) become `target`; `count` are wanted."""

    size: int
    length: float | int
    target: int
    start: int
    count: int

    @property
    def scale(self) -> float:
        """Source pixels an output pixel."""
        return self.length / self.target

    def reach(self, resample: Resample) -> tuple[int, int]:
        """The source pixels, first and one past the last, that the wanted output may depend on."""
        support = KERNELS[resample].support * max(self.scale, 1.0)
        low = (self.start + 0.5) * self.scale - support
        high = (self.start + self.count - 0.5) * self.scale + support
        return max(0, int(low) - 1), min(self.size, int(high) + 2)


@dataclass(frozen=True)
class _Bands:
    sources: tuple[tuple[int, int], ...]  # source pixels of each group, first and one past the last
    matrices: Float32[Tensor, "groups n k"]


@lru_cache(maxsize=64)  # photographs of one camera have one size
def _bands(axis: Axis, resample: Resample) -> _Bands:
    """The weights of an axis in groups of neighbouring output pixels: a small dense matrix for each."""
    kernel = KERNELS[resample]
    stretch = max(axis.scale, 1.0)  # shrinking widens the filter
    support = kernel.support * stretch
    centre = (np.arange(axis.start, axis.start + axis.count) + 0.5) * axis.scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centre + support + 0.5), axis.size).astype(np.int64)
    index = first[:, None] + np.arange(max(1, int((last - first).max())))[None]
    weights = kernel.weight((index - centre[:, None] + 0.5) / stretch)
    weights = np.where(index < last[:, None], weights, 0.0)
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=weights, where=total != 0)
    group, row = np.divmod(np.arange(axis.count)[:, None], BAND)
    left, right = first[::BAND], np.maximum.reduceat(last, np.arange(0, axis.count, BAND))
    offset = index - left[group]
    matrices = np.zeros((len(left), BAND, int(offset.max()) + 1), np.float32)
    matrices[group, row, offset] = weights
    return _Bands(tuple(zip(left.tolist(), right.tolist(), strict=True)), torch.from_numpy(matrices))


def resample_crop(
    pixels: UInt8[np.ndarray, "h w 3"],
    extent: tuple[float, float],
    target: tuple[int, int],
    box: Box,
    resample: Resample,
    columns_first: bool,
) -> UInt8[Tensor, "h2 w2 3"]:
    """The part `box` of `pixels` resized to `target` = (height, width); never a view of `pixels`, which must be writable.

    `extent` is the image's (height, width) in units of `pixels`: a picture decoded at half its scale ends in half a pixel
    where a side was odd. `columns_first` is the order of the passes: the number of columns changes before that of rows.
    Memory follows the source and `box`, but for the pixels before `box` along the axis that comes first.
    """
    rows = Axis(pixels.shape[0], extent[0], target[0], box.top, box.height)
    columns = Axis(pixels.shape[1], extent[1], target[1], box.left, box.width)
    source = torch.from_numpy(pixels)
    if columns_first:
        low, high = rows.reach(resample)
        half = _eight_bit(source[low:high], 1, columns, resample)[:, columns.start :]
        return _along(half, rows, low, resample)
    low, high = columns.reach(resample)
    half = _eight_bit(source, 0, rows, resample)[rows.start :, low:high]
    return _along(half.transpose(0, 1), columns, low, resample).transpose(0, 1)


def _eight_bit(source: UInt8[Tensor, "h w 3"], dim: int, axis: Axis, resample: str) -> UInt8[Tensor, "h2 w2 3"]:
    """One axis resized in 8 bits: from the edge on, as this kernel knows no offset, to the last pixel wanted.

    In this thread's space, as is what `_along` has between its steps.
    """
    size, scales = list(source.shape[:2]), [1.0, 1.0]
    size[dim], scales[dim] = axis.start + axis.count, 1.0 / axis.scale
    half = torch.from_numpy(kept("half", size[0] * size[1] * 3)).view(1, *size, 3)
    # Indexed before it is permuted, as torch then sees "channels last" and takes its fast way.
    _EIGHT_BIT[resample](source[None].permute(0, 3, 1, 2), size, False, *scales, out=half.permute(0, 3, 1, 2))
    return half[0]


def _along(half: UInt8[Tensor, "k m 3"], axis: Axis, low: int, resample: Resample) -> UInt8[Tensor, "n m 3"]:
    """The leading axis resized in float, where `half` begins at source pixel `low`."""
    bands = _bands(axis, resample)
    flat = _floats("floats", half.shape).copy_(half).flatten(1)
    sums = _floats("sums", (len(bands.sources), BAND, flat.shape[1]))
    for total, matrix, (first, last) in zip(sums, bands.matrices, bands.sources, strict=True):
        torch.mm(matrix[:, : last - first], flat[first - low : last - low], out=total)
    whole: Tensor = sums.flatten(0, 1)[: axis.count].add_(0.5).clamp_(0, 255).to(torch.uint8)
    return whole.view(axis.count, half.shape[1], 3)


def _floats(use: Use, shape: Sequence[int]) -> Float32[Tensor, "..."]:
    return torch.from_numpy(kept(use, 4 * math.prod(shape)).view(np.float32)).view(*shape)
