"""`Textures`: ten classes of texture in any colours, a labelled set that raw pixels tell apart poorly and a small network can.

Promise: image i of a seed is always the same; classes come in turn, so any range of indices is balanced.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numpy.typing import NDArray

from dinokit.train.counter import Stream
from dinokit.train.data.calculated import Calculated

TEXTURES = (
    "grating_0", "grating_45", "grating_90", "grating_135", "checks", "checks_turned", "dots", "rings", "clouds", "noise",
)  # fmt: skip
PERIOD = 6.0, 12.0  # pixels
TILT = 0.2  # radians either way
SMOOTHING = 1.5  # of clouds, in pixels


@dataclass(frozen=True)
class Textures(Calculated):
    """`count` images; another `seed` gives images for a test.

    `contrast` is the least distance between the two colours of an image, as RGB in [0, 1]. By chance it is below 0.3 in a fifth of the
    images, in which noise (of up to 0.1 a channel) leaves little to see.
    """

    count: int
    size: int = 28
    seed: int = 0
    contrast: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.contrast <= 1:
            raise ValueError(
                f"contrast is {self.contrast}; two colours can differ by 1 whatever their direction, not more."
            )
        self._check_extent(8)

    def labels(self) -> Int64[np.ndarray, " count"]:
        """The class of each image, an index into `TEXTURES`."""
        return np.arange(self.count, dtype=np.int64) % len(TEXTURES)

    def batch(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n s s 3"]:
        """Several images. Two random colours, the contrast between them, and noise, say nothing about the class."""
        wanted = np.array(list(indices), np.int64)
        numbers = Stream(self.seed, "textures").uniform(0, wanted, 16)
        noise = np.empty((len(wanted), 4, self.size, self.size))
        for i, index in enumerate(wanted.tolist()):
            noise[i] = Stream(self.seed, "texture noise").generator(0, index).standard_normal(noise.shape[1:])
        value = _values(wanted % len(TEXTURES), numbers, noise[:, 3])
        first, second = numbers[:, 4:7], numbers[:, 7:10]
        middle, contrast = (first + second) / 2, 0.5 + 0.5 * numbers[:, 10:11]
        low, high = middle + contrast * (first - middle), middle + contrast * (second - middle)
        if self.contrast:
            low, high = _apart(low, high, self.contrast)
        rgb = low[:, None, None] + value[..., None] * (high - low)[:, None, None]
        rgb += (0.02 + 0.08 * numbers[:, 11, None, None, None]) * noise[:, :3].transpose(0, 2, 3, 1)
        return np.asarray(np.clip(rgb, 0, 1) * 255 + 0.5, np.uint8)


def _apart(
    low: Float64[np.ndarray, "n 3"], high: Float64[np.ndarray, "n 3"], distance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same colours, pulled apart along their line to this distance where they are nearer, and moved back into [0, 1]."""
    half = (high - low) / 2
    half = half * np.maximum(1, distance / 2 / np.linalg.norm(half, axis=1, keepdims=True))
    middle = np.clip((low + high) / 2, abs(half), 1 - abs(half))
    return middle - half, middle + half


def _values(
    classes: Int64[np.ndarray, " n"], numbers: Float64[np.ndarray, "n 16"], noise: Float64[np.ndarray, "n s s"]
) -> NDArray[np.float64]:
    """Between the two colours, 0 to 1."""
    period, phase_u, phase_v, tilt = numbers[:, :4, None, None].transpose(1, 0, 2, 3)
    size = noise.shape[1]
    rate = 2 * np.pi / (PERIOD[0] + (PERIOD[1] - PERIOD[0]) * period)
    quarter = np.where(classes < 4, classes, (classes == TEXTURES.index("checks_turned")).astype(np.int64))
    angle = quarter[:, None, None] * np.pi / 4 + TILT * (2 * tilt - 1)
    x = np.arange(size)[None, None] - (size - 1) / 2
    y = np.arange(size)[None, :, None] - (size - 1) / 2
    u = rate * (x * np.cos(angle) + y * np.sin(angle)) + 2 * np.pi * phase_u
    v = rate * (y * np.cos(angle) - x * np.sin(angle)) + 2 * np.pi * phase_v
    away = np.hypot(x - size * (phase_u - 0.5) / 2, y - size * (phase_v - 0.5) / 2)
    waves, across = np.sin(u), np.sin(v)
    soft = _smooth(noise)
    spread = soft.std(axis=(1, 2), keepdims=True)
    patterns = {
        "checks": np.sign(waves * across),
        "checks_turned": np.sign(waves * across),
        "dots": np.clip(3 * (waves + across - 0.8), -1, 1),
        "rings": np.sin(rate * away + 2 * np.pi * tilt),
        "clouds": soft / (2 * spread),
        "noise": noise / 2,
    }
    out = waves.copy()
    for name, pattern in patterns.items():
        here = classes == TEXTURES.index(name)
        out[here] = pattern[here]
    return np.asarray(np.clip((out + 1) / 2, 0, 1))


def _smooth(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise without its high frequencies."""
    frequency = np.hypot(np.fft.fftfreq(noise.shape[1])[:, None], np.fft.rfftfreq(noise.shape[2]))
    response = np.exp(-2 * (np.pi * SMOOTHING * frequency) ** 2)
    found: NDArray[np.float64] = np.fft.irfft2(np.fft.rfft2(noise) * response, s=noise.shape[1:])
    return found
