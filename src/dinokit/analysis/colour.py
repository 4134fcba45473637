"""Values to colours: a sequential, a diverging and a categorical set, and `Scale`, which says what a colour means.

All are computed from formulas in OKLab, so that equal steps of value are equal steps of seen lightness; none is a copied table.
Source: Ottosson 2020, "A perceptual color space for image processing" (the two matrices of OKLab).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Real, UInt8

LEVELS = 256
MapName = Literal["sequential", "diverging"]

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def srgb_to_oklab(colours: UInt8[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """(L, a, b): lightness in [0, 1], and two axes of hue."""
    value = colours.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    lab: np.ndarray = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    return lab


def oklab_to_linear(lab: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Linear sRGB; outside of [0, 1] where a screen has no such colour."""
    linear: np.ndarray = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    return linear


def _to_srgb(lab: Float[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    linear = np.clip(oklab_to_linear(lab), 0, 1)
    value = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    bytes_: UInt8[np.ndarray, "n 3"] = np.rint(255 * value).astype(np.uint8)
    return bytes_


def _lab(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> Float[np.ndarray, "n 3"]:
    angle = np.deg2rad(hue)
    return np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)


def _screen_chroma(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """The wished chroma, or the largest that a screen can show at this lightness and hue (by bisection)."""
    low, high = np.zeros_like(chroma), chroma.copy()
    for _ in range(24):
        middle = (low + high) / 2
        linear = oklab_to_linear(_lab(lightness, middle, hue))
        fits = ((linear >= -1e-6) & (linear <= 1 + 1e-6)).all(axis=-1)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low


def _smooth(chroma: np.ndarray) -> np.ndarray:
    """Without the kinks where a wish meets the end of what a screen can show: they would look like edges in the data."""
    width = 33
    window = np.lib.stride_tricks.sliding_window_view(np.pad(chroma, width - 1, mode="edge"), width)
    least = window.min(axis=-1)  # never more than what can be shown
    return np.lib.stride_tricks.sliding_window_view(least, width).mean(axis=-1)  # type: ignore[no-any-return]


@functools.cache
def sequential() -> UInt8[np.ndarray, "256 3"]:
    """Dark violet over red and orange to pale yellow; lightness rises evenly, so it also reads in grey."""
    t = np.linspace(0, 1, LEVELS)
    lightness, hue = 0.15 + 0.81 * t, 285 + 180 * t
    chroma = _smooth(_screen_chroma(lightness, 0.04 + 0.15 * np.sin(np.pi * (0.06 + 0.80 * t)), hue))
    return _to_srgb(_lab(lightness, chroma, hue))


@functools.cache
def diverging() -> UInt8[np.ndarray, "256 3"]:
    """Blue over near white to red-brown: both halves lose lightness and gain chroma alike; readable with red-green blindness."""
    t = np.linspace(-1, 1, LEVELS)
    lightness, wished = 0.965 - 0.50 * np.abs(t), 0.19 * np.abs(t) ** 0.75
    blue, red = np.full(LEVELS, 255.0), np.full(LEVELS, 35.0)
    chroma = _smooth(np.minimum(_screen_chroma(lightness, wished, blue), _screen_chroma(lightness, wished, red)))
    return _to_srgb(_lab(lightness, chroma, np.where(t < 0, blue, red)))


@functools.cache
def categorical(count: int) -> UInt8[np.ndarray, "count 3"]:
    """`count` colours, neighbours far apart in hue (golden angle) and of three lightnesses in turn."""
    index = np.arange(count)
    hue = (250 + 137.50776 * index) % 360
    lightness = np.array([0.62, 0.80, 0.71])[index % 3]
    return _to_srgb(_lab(lightness, _screen_chroma(lightness, np.full(count, 0.15), hue), hue))


TABLES = {"sequential": sequential, "diverging": diverging}


def check_finite(name: str, values: np.ndarray) -> np.ndarray:
    """`values`, if all are finite and there is one.

    Raises:
        ValueError: empty, or not finite somewhere.
    """
    if values.size == 0:
        raise ValueError(f"{name} is empty (shape {values.shape}); there is nothing to draw.")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} holds {int((~np.isfinite(values)).sum())} values of {values.size} that are not finite. Find where they come "
            f"from before you draw them: weights in half precision and damaged checkpoints are the usual causes."
        )
    return values


@dataclass(frozen=True)
class Scale:
    """What colours mean: `low` has the first colour of the map, `high` the last, values outside those of the ends.

    `log` spaces colours by factors. `label` says what is measured, with its unit. `cut` says that values above `high` exist.

    Raises:
        ValueError: the ends are not finite, not in order, or not positive on a logarithmic scale.
    """

    low: float
    high: float
    label: str = ""
    map: MapName = "sequential"
    log: bool = False
    cut: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a scale from {self.low} to {self.high}: both ends are finite and in order.")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale starts at {self.low}; it must start above 0.")
        if self.map not in TABLES:
            raise ValueError(f"colour map {self.map!r}; it must be one of {', '.join(TABLES)}.")

    @classmethod
    def of(
        cls, values: Real[np.ndarray, "..."], label: str = "", *, percentile: float = 100, zero: bool = False
    ) -> Scale:
        """Sequential, from the smallest value (from 0 with `zero`) to the `percentile`-th."""
        values = check_finite(label or "the map", np.asarray(values, np.float64))
        high = float(np.percentile(values, percentile))
        low = 0.0 if zero else float(values.min())
        return cls(low, max(high, low), label, cut=bool(values.max() > high))

    @classmethod
    def symmetric(cls, values: Real[np.ndarray, "..."], label: str = "") -> Scale:
        """Diverging, as far to both sides of 0 as the largest absolute value."""
        reach = float(np.abs(check_finite(label or "the map", np.asarray(values, np.float64))).max())
        return cls(-reach, reach, label, "diverging")

    @classmethod
    def logarithmic(cls, values: Real[np.ndarray, "..."], label: str = "") -> Scale:
        """Sequential in factors, over the positive values."""
        values = check_finite(label or "the map", np.asarray(values, np.float64))
        positive = values[values > 0]
        if not positive.size:
            raise ValueError(f"{label or 'the map'} has no positive value for a logarithmic scale.")
        return cls(float(positive.min()), float(positive.max()), label, log=True)

    def place(self, values: Real[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Where values lie between the ends, in [0, 1]; 0.5 everywhere if the ends are equal.

        Raises:
            ValueError: a value is not finite.
        """
        values = check_finite(self.label or "the map", np.asarray(values, np.float64))
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-30):
            return np.full(values.shape, 0.5)
        return np.clip((values - low) / (high - low), 0, 1)

    def colours(self, values: Real[np.ndarray, "..."]) -> UInt8[np.ndarray, "... 3"]:
        """RGB of each value."""
        index = np.rint(self.place(values) * (LEVELS - 1)).astype(np.int64)
        return TABLES[self.map]()[index]  # type: ignore[no-any-return]

    def ticks(self) -> list[float]:
        """Three to six round numbers between the ends for a legend, the ends themselves where nothing round lies there."""
        if self.high <= self.low:
            return [self.low]
        if self.log and self.high / self.low > 8:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
                found = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / 6)]
            return [self.low, self.high]
        width = self.high - self.low
        power = 10.0 ** math.floor(math.log10(width))
        step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if width / (s * power) <= 5 + 1e-9)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """For a legend: three digits at most where that says enough, no needless zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
