"""`Procedural`: endless images without files: leaves that cover each other, textured and lit, and fractals over them.

Promise: image i of a seed and size is always the same, alone or in a batch; about a thousand 64-pixel images a second and core.
Source: Lee, Mumford and Huang 2001 (dead leaves and natural images); Kataoka et al. 2020 (fractals to pre-train on);
Baradad et al. 2021 (learning to see by looking at noise).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from dinokit.train.counter import Stream
from dinokit.train.data.calculated import Calculated
from dinokit.train.data.patterns import NUMBERS_A_LOOK, NoiseFields, Values, colours, draw_looks, filled

LEAVES = 40
CORNERS = 28
NUMBERS_A_LEAF = 8
AT_ONCE = 1 << 16  # pixels worked on together: arrays of a quarter of a megabyte
WALKERS, WALK, WARM_UP = 1024, 18, 6
# Shares of images with few, some, and many leaves; the rest is one texture. And of those with a fractal over it.
FEW, SOME, MANY, FRACTAL = 0.15, 0.3, 0.4, 0.25


@dataclass(frozen=True)
class Procedural(Calculated):
    """`count` images of `size` x `size` pixels; by index, or many at once with `batch`."""

    count: int
    size: int = 64
    seed: int = 0
    noise: NoiseFields = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_extent(8)
        object.__setattr__(self, "noise", NoiseFields(self.seed))

    def batch(self, indices: Iterable[int]) -> UInt8[np.ndarray, "n s s 3"]:
        """Several images, faster than one by one."""
        wanted = [int(i) for i in indices]
        out = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        step = max(1, AT_ONCE // self.size**2)
        for start in range(0, len(wanted), step):
            out[start : start + step] = self._made(wanted[start : start + step])
        return out

    def _made(self, indices: list[int]) -> UInt8[np.ndarray, "b s s 3"]:
        stream = Stream(self.seed, "procedural")
        generators = [stream.generator(0, i) for i in indices]
        numbers = np.stack([g.random(16, np.float32) for g in generators])
        leaves = np.stack([g.random((LEAVES, NUMBERS_A_LEAF), np.float32) for g in generators])
        looks = np.stack([g.random((LEAVES + 1, NUMBERS_A_LOOK), np.float32) for g in generators])
        regions = np.stack(
            [drawn(x, leaves_of(n), self.size) for x, n in zip(outlines(leaves, self.size), numbers, strict=True)]
        )
        rgb = filled(regions, draw_looks(looks, self.size), self.noise)
        rgb *= _shadows(regions, numbers)
        for i, generator in enumerate(generators):
            if numbers[i, 0] < FRACTAL:
                _lay_over(rgb[:, i], fractal(generator, self.size), numbers[i])
        return _developed(rgb, numbers, self.noise)


def leaves_of(numbers: Float32[np.ndarray, "16"]) -> int:
    """How many leaves an image has."""
    kind, share = float(numbers[1]), float(numbers[2])
    if kind < FEW:
        return 1 + int(4 * share)
    if kind < FEW + SOME:
        return 6 + int(12 * share)
    return LEAVES if kind < FEW + SOME + MANY else 0


def outlines(numbers: Float32[np.ndarray, "b k 8"], size: int) -> Float32[np.ndarray, "b k c 2"]:
    """Corners (x, y) of leaves: ellipses, boxes, polygons, stars and blobs; radii fall off as r^-3, as in Lee et al."""
    n = np.moveaxis(numbers, -1, 0)[..., None]
    small, large = 0.06, 0.45
    radius = size / np.sqrt(small**-2 + n[0] * (large**-2 - small**-2))
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False, dtype=np.float32)
    power = np.where(n[1] < 0.35, 2.0, 10 ** (1.2 * n[2] - 0.1))  # superellipse: diamond, ellipse, box
    box = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power)
    sides = 3 + np.floor(5 * n[2])
    part = 2 * np.pi / sides
    polygon = np.cos(part / 2) / np.cos(angle % part - part / 2)
    blob = 1 + 0.25 * np.cos(sides * angle + 6.28 * n[3]) + 0.15 * np.cos((sides - 1) * angle + 6.28 * n[4])
    shape = np.where(n[1] < 0.55, box, np.where(n[1] < 0.75, polygon, blob)) * radius
    x, y = shape * np.cos(angle), shape * np.sin(angle) * (0.35 + 0.65 * n[3])
    c, s = np.cos(6.28 * n[5]), np.sin(6.28 * n[5])
    corners = np.stack([c * x - s * y + size * n[6], s * x + c * y + size * n[7]], axis=-1)
    return corners.astype(np.float32)


def drawn(corners: Float32[np.ndarray, "k c 2"], count: int, size: int) -> UInt8[np.ndarray, "s s"]:
    """Which leaf is on top at each pixel: 0 for none, later ones above earlier ones."""
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    for i in range(count):
        draw.polygon(corners[i].ravel().tolist(), fill=i + 1)
    return np.asarray(canvas)


def _shadows(regions: UInt8[np.ndarray, "b s s"], numbers: Float32[np.ndarray, "b 16"]) -> Float32[np.ndarray, "b s s"]:
    """Darker where a leaf that lies higher is near, towards the light."""
    light = np.ones(regions.shape, np.float32)
    reach = max(1, round(regions.shape[1] / 40))
    for i, (side, depth) in enumerate(numbers[:, 3:5]):
        for step in (reach, 2 * reach, 3 * reach):
            here, there = slice(step, None), slice(None, -step)
            across, beside = (here, there) if side < 0.5 else (there, here)
            above = regions[i, there, beside] > regions[i, here, across]
            light[i, here, across] -= (0.22 * depth) * above
    return light


def fractal(generator: np.random.Generator, size: int) -> Float32[np.ndarray, "s s"]:
    """How often random walkers under two to four affine contractions come to each pixel, on a logarithmic scale to 1."""
    maps = int(generator.integers(2, 5))
    turn = generator.uniform(0, 2 * np.pi, (maps, 2))
    shrink = generator.uniform(0.25, 0.85, (maps, 2))
    # In complex numbers, any linear map is z -> a z + b conj(z)
    spin, back = np.exp(1j * turn.sum(axis=1)), np.exp(1j * (turn[:, 0] - turn[:, 1]))
    maps_a = (spin * shrink.sum(axis=1) / 2).astype(np.complex64)
    maps_b = (back * (shrink[:, 0] - shrink[:, 1]) / 2).astype(np.complex64)
    shift = (generator.uniform(-1, 1, (maps, 2)) @ [1, 1j]).astype(np.complex64)
    area = np.cumsum(np.abs(shrink.prod(axis=1)) + 0.05)
    choice = np.searchsorted(area[:-1] / area[-1], generator.random((WALK, WALKERS), np.float32))
    at = np.zeros(WALKERS, np.complex64)
    visited = np.empty((WALK, WALKERS), np.complex64)
    for step, (a, b, c) in enumerate(zip(maps_a[choice], maps_b[choice], shift[choice], strict=True)):
        at = a * at + b * at.conj() + c
        visited[step] = at
    seen = visited[WARM_UP:].ravel()
    places = np.stack([seen.real, seen.imag])
    centre, spread = places.mean(axis=1, keepdims=True), places.std(axis=1, keepdims=True) + 1e-3
    cells = ((places - centre) * (0.2 * size / spread) + 0.5 * size).astype(np.int64)
    inside = ((cells >= 0) & (cells < size)).all(axis=0)
    hits = np.bincount((cells[1] * size + cells[0])[inside], minlength=size * size).reshape(size, size)
    density = np.log1p(hits.astype(np.float32))
    found: Float32[np.ndarray, "s s"] = density / density.max()
    return found


def _lay_over(rgb: Float32[np.ndarray, "3 s s"], density: Values, numbers: Float32[np.ndarray, "16"]) -> None:
    hue = 6.28 * numbers[5] + 3 * numbers[6] * density
    tint = colours(hue, 0.25 + 0.6 * density, np.full_like(density, 0.4 * float(numbers[7])))
    cover = np.minimum(1.6 * density, 1) * (density > 0)
    rgb += cover * (tint.transpose(2, 0, 1) - rgb)


def _developed(
    rgb: Float32[np.ndarray, "3 b s s"], numbers: Float32[np.ndarray, "b 16"], noise: NoiseFields
) -> UInt8[np.ndarray, "b s s 3"]:
    """As a camera would have it: edges a little soft, a tone curve, a colour cast, light that changes across, grain."""
    size = rgb.shape[2]
    n = numbers[:, :, None, None].transpose(1, 0, 2, 3)
    soft = 0.1 + 0.2 * n[8]
    for ends, middle, begins in (
        (np.s_[:, :, :-2], np.s_[:, :, 1:-1], np.s_[:, :, 2:]), (np.s_[..., :-2], np.s_[..., 1:-1], np.s_[..., 2:])
    ):  # fmt: skip
        mean = rgb[ends] + rgb[begins]
        mean *= 0.5
        mean -= rgb[middle]
        mean *= soft
        rgb[middle] += mean
    x = np.arange(size, dtype=np.float32)
    y = x[:, None]
    tilt = 1 + 0.5 * ((n[9] - 0.5) * (x / size - 0.5) + (n[10] - 0.5) * (y / size - 0.5))
    slow = noise.at(np.full((1, 1, 1), 3), y * (40 / size) + 128 * n[11], x * (40 / size) + 128 * n[12])
    light = tilt * (0.8 + 0.4 * slow)
    fine = (noise.at(np.zeros((1, 1, 1), np.int64), y + 128 * n[12], x + 128 * n[13]) - 0.5) * (0.16 * n[14] ** 2)
    curve = 0.6 * (n[15] - 0.5)
    out = np.empty((*rgb.shape[1:], 3), np.uint8)
    for i in range(3):
        level = np.clip(rgb[i] * light + fine, 0, 1)
        level += curve * level * (1 - level)
        out[..., i] = level * 255 + 0.5
    return out
