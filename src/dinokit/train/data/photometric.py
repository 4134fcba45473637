"""Flip, colour jitter, grey, blur, solarisation, normalisation: what happens to crops on the device that trains.

Promise: what happens to a crop depends on (seed, visit, number of the crop) only; numbers are drawn on the host, so they are the
same on every device. Source: dinov2/data/augmentations.py; torchvision's ColorJitter (four changes in random order).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8
from torch import Tensor

from dinokit.train.counter import Samples, Stream, unit
from dinokit.train.data.pixelops import blended, blurred, hue_shifted, solarized

# Effective rates of the released recipe: the official helper passes 1 - p on, so its (1.0, 0.1, 0.5) act as (0.0, 0.9, 0.5).
Blur = Literal["dinov2", "dino"]
BLUR_RATES: dict[Blur, tuple[float, float, float]] = {"dinov2": (0.0, 0.9, 0.5), "dino": (1.0, 0.1, 0.5)}
BLURS: tuple[Blur, ...] = get_args(Blur)

ORDERS = np.array(list(permutations(range(4))))
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
IDENTITY = 1.0, 0.0, 0.0
BLOCKS_A_CROP = 4  # of the stream, of four numbers each
# Values that the CPU works on at a time: a few of its largest crops, so that they stay in its cache.
CPU_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Photometric:
    """How often, and how much; `jitter` is the largest change of (brightness, contrast, saturation, hue in turns)."""

    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_rate: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter_rate", "grey", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability, 0 to 1.")
        if min(self.jitter) < 0 or self.jitter[HUE] > 0.5:
            raise ValueError(f"jitter is {self.jitter}; no part may be negative, and hue at most half a turn.")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma is {self.sigma}; it must be two widths in pixels, 0 < low <= high.")


@dataclass(frozen=True)
class Choices:
    """What happens to n crops. `blends[:, i]` are the weights of the i-th change (see `blended`), the last making grey."""

    flip: Bool[np.ndarray, " n"]
    blends: Float32[np.ndarray, "n 5 3"]
    hue_at: Int64[np.ndarray, " n"]
    turns: Float32[np.ndarray, " n"]
    blur: Bool[np.ndarray, " n"]
    sigmas: Float32[np.ndarray, " n"]
    solarize: Bool[np.ndarray, " n"]


def draw_choices(seed: int, visits: Samples, crop: int, rule: Photometric) -> Choices:
    """What happens to crop number `crop` of each visit."""
    words = Stream(seed, "photometric").words(0, visits, crop * BLOCKS_A_CROP, BLOCKS_A_CROP)
    numbers = unit(words).reshape(len(visits), BLOCKS_A_CROP * 4).T
    flip, jitter, order, grey, blur, sigma, solarize = numbers[:7]
    factors = [_between(number, most) for number, most in zip(numbers[7:10], rule.jitter[:HUE], strict=True)]
    blends = np.empty((len(visits), 5, 3), np.float32)
    blends[:] = IDENTITY
    jittered, rows = jitter < rule.jitter_rate, np.arange(len(visits))
    places = ORDERS[(order * len(ORDERS)).astype(np.int64)].argsort(axis=1)  # n 4: when each change has its turn
    for change, f in enumerate(factors):
        rest = {BRIGHTNESS: (0 * f, 0 * f), CONTRAST: (0 * f, 1 - f), SATURATION: (1 - f, 0 * f)}[change]
        blends[rows[jittered], places[jittered, change]] = np.stack([f, *rest], axis=1)[jittered]
    blends[grey < rule.grey, 4] = (0.0, 1.0, 0.0)
    return Choices(
        flip=flip < rule.flip,
        blends=blends,
        hue_at=np.where(jittered & (rule.jitter[HUE] > 0), places[:, HUE], -1),
        turns=((2 * numbers[10] - 1) * rule.jitter[HUE]).astype(np.float32),
        blur=blur < rule.blur,
        sigmas=(rule.sigma[0] + (rule.sigma[1] - rule.sigma[0]) * sigma).astype(np.float32),
        solarize=solarize < rule.solarize,
    )


def _between(number: Float64[np.ndarray, " n"], most: float) -> Float64[np.ndarray, " n"]:
    """A factor from U(max(0, 1 - most), 1 + most)."""
    low = max(0.0, 1 - most)
    return low + (1 + most - low) * number


def altered(
    pixels: UInt8[Tensor, "n 3 h w"],
    choices: Choices,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    out: Float[Tensor, "n 3 h w"] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Crops as a network reads them: flipped, jittered, greyed, blurred, solarised (in this order), and normalised.

    Calculated in float32, whatever the dtype of `out`, which takes the result if given.
    """
    if out is None:
        out = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    at_once = len(pixels) if pixels.is_cuda else max(1, CPU_ELEMENTS // max(1, pixels[:1].numel()))
    centre = torch.tensor(mean, device=pixels.device)[:, None, None]
    factor = 1 / torch.tensor(std, device=pixels.device)[:, None, None]
    for start in range(0, len(pixels), max(1, at_once)):
        rows = slice(start, start + at_once)
        x = _altered(pixels[rows], choices, rows)
        out[rows] = x.sub_(centre).mul_(factor)
    return out


def _altered(pixels: UInt8[Tensor, "n 3 h w"], choices: Choices, rows: slice) -> Float32[Tensor, "n 3 h w"]:
    device = pixels.device

    def on(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)

    def where(mask: np.ndarray) -> tuple[Tensor, np.ndarray]:
        found = np.flatnonzero(mask)
        return on(found), found

    x = torch.empty(pixels.shape, dtype=torch.float32, device=device)
    torch.mul(pixels, 1 / 255, out=x)
    index, found = where(choices.flip[rows])
    if len(found):
        x[index] = x[index].flip(-1)
    for turn in range(5):
        weights = choices.blends[rows, turn]
        index, found = where((weights != IDENTITY).any(axis=1))
        if len(found):
            x[index] = blended(x[index], on(weights[found]))
        index, found = where(choices.hue_at[rows] == turn)
        if len(found):
            x[index] = hue_shifted(x[index], on(choices.turns[rows][found]))
    index, found = where(choices.blur[rows])
    if len(found):
        x[index] = blurred(x[index], on(choices.sigmas[rows][found]))
    index, found = where(choices.solarize[rows])
    if len(found):
        x[index] = solarized(x[index])
    return x
