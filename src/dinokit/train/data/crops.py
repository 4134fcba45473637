"""Crops of random place, size and shape, resized: which boxes, and the pixels inside them.

Promise: a crop's box depends on (seed, visit, number of the crop, the image's size) only; pixels outside the box are never read.
Source: Szegedy et al. 2014, section 6 (random area and aspect); Caron et al. 2020 (several sizes); dinov2/data/augmentations.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from dinokit.train.counter import Samples, Stream, unit
from dinokit.train.numerics import exactly, rows_at_once

TRIES = 10  # as in torchvision, where the official code has its crops from
BLOCKS_A_CROP = 16  # of the stream; at least TRIES
BICUBIC_A = -0.5


@dataclass(frozen=True)
class CropRule:
    """`count` square crops of `size` pixels, each of U(scale) of the image's area and an aspect ratio of log-uniform `ratio`."""

    count: int
    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.count < 0 or self.size < 1:
            raise ValueError(
                f"{self.count} crops of {self.size} pixels: the count must be at least 0, the size at least 1."
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be two shares of the area, 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}; it must be two widths over heights, 0 < low <= high.")


def crop_numbers(seed: int, visits: Samples, first: int, count: int) -> Float64[np.ndarray, "b c t 4"]:
    """What crops `first` to `first + count` of each visit are drawn from: four numbers in (0, 1) for each try."""
    stream = Stream(seed, "crop boxes")
    crops = np.tile(np.arange(first, first + count, dtype=np.int64), len(visits))
    words = stream.words(0, np.repeat(visits, count), crops * BLOCKS_A_CROP, TRIES)
    return unit(words).reshape(len(visits), count, TRIES, 4)


def boxes(
    numbers: Float64[np.ndarray, "*n t 4"],
    height: int | Int64[np.ndarray, "*#n"],
    width: int | Int64[np.ndarray, "*#n"],
    rule: CropRule,
) -> Int64[np.ndarray, "*n 4"]:
    """(Top, left, height, width) of each crop: the first try that fits the image.

    If none does, the largest box in the middle whose shape `ratio` allows.
    """
    size = np.asarray(height)[..., None], np.asarray(width)[..., None]
    area = size[0] * size[1] * (rule.scale[0] + (rule.scale[1] - rule.scale[0]) * numbers[..., 0])
    low, high = math.log(rule.ratio[0]), math.log(rule.ratio[1])
    ratio = np.exp(low + (high - low) * numbers[..., 1])
    h, w = np.rint(np.sqrt(area / ratio)).astype(np.int64), np.rint(np.sqrt(area * ratio)).astype(np.int64)
    fits = (h > 0) & (w > 0) & (h <= size[0]) & (w <= size[1])
    top = (numbers[..., 2] * (size[0] - h + 1)).astype(np.int64)
    left = (numbers[..., 3] * (size[1] - w + 1)).astype(np.int64)
    tried = np.stack([top, left, h, w], axis=-1)
    first = np.take_along_axis(tried, fits.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    middle = np.broadcast_to(_middle(size[0], size[1], rule)[..., 0, :], first.shape)
    found: Int64[np.ndarray, "*n 4"] = np.where(fits.any(axis=-1)[..., None], first, middle)
    return found


def _middle(
    height: Int64[np.ndarray, "..."], width: Int64[np.ndarray, "..."], rule: CropRule
) -> Int64[np.ndarray, "... 4"]:
    h = np.minimum(height, np.maximum(np.rint(width / rule.ratio[0]), 1)).astype(np.int64)
    w = np.minimum(width, np.maximum(np.rint(height * rule.ratio[1]), 1)).astype(np.int64)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=-1)


def crop_pixels(
    pixels: UInt8[np.ndarray, "h w 3"], places: Int64[np.ndarray, "n 4"], size: int
) -> list[UInt8[Tensor, "3 s s"]]:
    """Crops of one image, bicubic and antialiased; off by a level, hardly ever two, from cropping and resizing with Pillow."""
    # torch's 8-bit resize takes a quarter of Pillow's time if colours lie next to each other, as they do here
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    found = []
    for top, left, h, w in places.tolist():
        part = image[:, :, top : top + h, left : left + w]
        if (h, w) != (size, size):
            part = F.interpolate(part, (size, size), mode="bicubic", antialias=True, align_corners=False)
        found.append(part[0])
    return found


def crop_tensors(
    images: UInt8[Tensor, "b 3 h w"], places: Int64[Tensor, "b 4"], size: int
) -> UInt8[Tensor, "b 3 {size} {size}"]:
    """One crop of each image of a batch, where the batch lies: the same crops as two products with matrices of taps.

    Work grows with `size` times the image's pixels, so this is for images of at most a few hundred pixels.
    """
    out = images.new_empty((len(images), 3, size, size))
    at_once = rows_at_once(3 * images.shape[2] * images.shape[3])
    with exactly(images):
        for rows in range(0, len(images), at_once):
            some, place = images[rows : rows + at_once].float(), places[rows : rows + at_once]
            down = tap_matrix(place[:, 0], place[:, 2], images.shape[2], size)
            across = tap_matrix(place[:, 1], place[:, 3], images.shape[3], size)
            # rounded between the passes, as 8-bit code does, which cuts off what the filter throws beyond the ends
            wide = _levels(some @ across[:, None].transpose(2, 3))
            out[rows : rows + at_once] = _levels(down[:, None] @ wide)
    return out


def _levels(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)


def tap_matrix(
    start: Int64[Tensor, " b"], length: Int64[Tensor, " b"], size_in: int, size_out: int
) -> Float[Tensor, "b {size_out} {size_in}"]:
    """Rows of bicubic weights that take `length` pixels from `start` to `size_out` ones; widened where they shrink."""
    scale = length.float()[:, None, None] / size_out
    stretch = scale.clamp_min(1.0)
    source = torch.arange(size_in, device=start.device)
    centre = start[:, None, None] + (torch.arange(size_out, device=start.device)[:, None] + 0.5) * scale
    inside = (source >= start[:, None]) & (source < (start + length)[:, None])
    weights = _cubic((source + 0.5 - centre) / stretch) * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    x, a = x.abs(), BICUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
