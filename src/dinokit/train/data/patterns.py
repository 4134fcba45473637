"""What made images are made of: noise fields, colours, and regions filled with waves, spots, noise and light.

Promise: everything is a function of its arguments; a batch of images has the pixels that each has alone.
Source: Field 1987 (spectra of natural images fall as 1/f), Perlin 1985 (noise that bends other patterns).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy.typing import NDArray

Values = NDArray[np.float32]
Numbers = NDArray[np.floating[Any]]
FIELD = 128  # pixels of a noise field; a power of two, so that it tiles by masking bits
SLOPES = 0.6, 0.9, 1.2, 1.6  # amplitude falls with frequency to this power: from speckle to clouds
THIRD = 2 * np.pi / 3
COLOUR_PHASES = np.array([0.0, -THIRD, THIRD], np.float32)
KINDS = 8
# Weights of (u, v, u v, noise), offset, and how far noise bends u; for each kind of region
WEIGHTS = np.array(
    [
        [0.0, 0.0, 0.0, 0.4, 0.0, 0.0],  # nearly plain
        [1.0, 0.0, 0.0, 0.1, 0.0, 0.0],  # stripes
        [0.0, 0.0, 1.0, 0.1, 0.0, 0.0],  # checks
        [0.6, 0.6, 0.0, 0.1, -0.5, 0.0],  # dots
        [0.0, 0.0, 0.0, 1.2, 0.0, 0.0],  # clouds, or speckle
        [1.0, 0.0, 0.0, 0.2, 0.0, 7.0],  # marble
        [0.7, 0.0, 0.5, 0.3, 0.1, 2.0],  # bark
        [0.3, 0.3, 0.0, 0.8, -0.2, 3.0],  # stains
    ],
    np.float32,
)


@dataclass(frozen=True)
class NoiseFields:
    """Noise of several slopes that repeats every `FIELD` pixels; values in [0, 1] around 1/2."""

    seed: int

    @cached_property
    def values(self) -> Float32[np.ndarray, "n f f"]:
        """One field for each slope."""
        rng = np.random.default_rng([self.seed, 0xD1])
        frequency = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None]) * FIELD
        fields = []
        for slope in SLOPES:
            spectrum = np.fft.rfft2(rng.standard_normal((FIELD, FIELD))) / np.maximum(frequency, 1) ** slope
            spectrum[0, 0] = 0
            field = np.fft.irfft2(spectrum)
            fields.append(np.clip(0.5 + field / (5 * field.std()), 0, 1))
        return np.array(fields, np.float32)

    def at(self, which: NDArray[np.int64] | np.int64, y: Values, x: Values) -> Values:
        """Field number `which` at these pixels, the nearest ones of the field."""
        index = ((which << 14) + ((y.astype(np.int64) & FIELD - 1) << 7)) + (x.astype(np.int64) & FIELD - 1)
        found: Values = np.take(self.values.reshape(-1), index)
        return found

    def between(self, which: int, y: Values, x: Values) -> Values:
        """Field number `which` interpolated at these places."""
        top, left = np.floor(y), np.floor(x)
        down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
        number = np.int64(which)
        upper = (1 - right) * self.at(number, top, left) + right * self.at(number, top, left + 1)
        lower = (1 - right) * self.at(number, top + 1, left) + right * self.at(number, top + 1, left + 1)
        return np.asarray(upper + down * (lower - upper), np.float32)


def colours(hue: Numbers, level: Numbers, chroma: Numbers) -> Values:
    """RGB along a new last axis: `level` plus `chroma` in the direction of `hue` (radians); clipped."""
    rgb = level[..., None] + chroma[..., None] * np.cos(hue[..., None] + COLOUR_PHASES)
    return np.asarray(np.clip(rgb, 0.02, 0.98), np.float32)


@dataclass(frozen=True)
class Looks:
    """How regions look, r of them for each of b images; `waves` are (x, y, phase) of u and of v in radians a pixel.

    `light` is (x, y, constant) of brightness; `grain` is (scale, y, x) into noise field `field`.
    """

    low: Float32[np.ndarray, "b r 3"]
    high: Float32[np.ndarray, "b r 3"]
    waves: Float32[np.ndarray, "b r 2 3"]
    weights: Float32[np.ndarray, "b r 6"]
    sharpness: Float32[np.ndarray, "b r"]
    light: Float32[np.ndarray, "b r 3"]
    grain: Float32[np.ndarray, "b r 3"]
    field: Int64[np.ndarray, "b r"]


NUMBERS_A_LOOK = 20


def draw_looks(numbers: Float32[np.ndarray, "b r 20"], size: int) -> Looks:
    """Looks from numbers in (0, 1). Colours of an image go together: their hues lie around one or two of its own."""
    n = np.moveaxis(numbers, -1, 0)
    own = numbers[:, :1, 0] * 6.28, 0.1 + 1.4 * numbers[:, :1, 1] ** 2, 0.35 * numbers[:, :1, 2]  # hue, spread, chroma
    hue = own[0] + own[1] * (n[3] - 0.5) + np.pi * (n[4] < 0.2)
    level, chroma = 0.12 + 0.76 * n[5], own[2] * (0.3 + n[6])
    apart = (0.1 + 0.45 * n[7]) * np.where(level > 0.5, -1, 1)
    wave = size * (0.05 + 0.3 * n[8] ** 2)  # length in pixels
    angle = 6.28 * n[9]
    across = angle + 1.57 + 0.6 * (n[10] - 0.5)
    rate, rate_across = 6.28 / wave, 6.28 / (wave * (0.6 + n[11]))
    waves = np.stack(
        [
            np.stack([rate * np.cos(angle), rate * np.sin(angle), 6.28 * n[12]], axis=-1),
            np.stack([rate_across * np.cos(across), rate_across * np.sin(across), 6.28 * n[13]], axis=-1),
        ],
        axis=-2,
    )
    kind = (n[14] * KINDS).astype(np.int64)
    slope = 1.1 / size * (n[15] - 0.5), 1.1 / size * (n[16] - 0.5)
    return Looks(
        low=colours(hue, level, chroma),
        high=colours(hue + 0.8 * (n[6] - 0.5), level + apart, chroma),
        waves=waves.astype(np.float32),
        weights=WEIGHTS[kind],
        sharpness=(0.5 + 4 * n[17] ** 2).astype(np.float32),
        light=np.stack([*slope, 1 - size / 2 * (slope[0] + slope[1])], axis=-1).astype(np.float32),
        grain=np.stack([1 + n[18], FIELD * n[12], FIELD * n[13]], axis=-1).astype(np.float32),
        field=(n[19] * len(SLOPES)).astype(np.int64),
    )


def filled(regions: UInt8[np.ndarray, "b s s"], looks: Looks, noise: NoiseFields) -> Float32[np.ndarray, "3 b s s"]:
    """Colours of each pixel, from the look of the region it belongs to."""
    b, size = regions.shape[:2]
    count = looks.field.shape[1]
    flat = regions.astype(np.intp) + (np.arange(b) * count)[:, None, None]
    x = np.arange(size, dtype=np.float32)
    y = x[:, None]

    def take(values: NDArray[np.float32]) -> Values:
        found: Values = np.take(np.ascontiguousarray(values).reshape(-1), flat)
        return found

    def plane(values: NDArray[np.float32]) -> Values:
        return take(values[..., 0]) * x + take(values[..., 1]) * y + take(values[..., 2])

    scale = take(looks.grain[..., 0])
    field = np.take(looks.field.reshape(-1), flat)
    grain = noise.at(field, scale * y + take(looks.grain[..., 1]), scale * x + take(looks.grain[..., 2]))
    grain = 2 * grain - 1
    u = np.sin(plane(looks.waves[:, :, 0]) + take(looks.weights[..., 5]) * grain)
    v = np.sin(plane(looks.waves[:, :, 1]))
    mix = take(looks.weights[..., 0]) * u
    mix += take(looks.weights[..., 1]) * v
    mix += take(looks.weights[..., 2]) * (u * v)
    mix += take(looks.weights[..., 3]) * grain
    mix += take(looks.weights[..., 4])
    mix *= take(looks.sharpness)
    mix = np.clip(mix + 0.5, 0, 1)
    light = plane(looks.light)
    out = np.empty((3, b, size, size), np.float32)
    for i in range(3):
        low = take(looks.low[..., i])
        out[i] = (low + mix * (take(looks.high[..., i]) - low)) * light
    return out
