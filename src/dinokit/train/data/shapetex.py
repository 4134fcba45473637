"""`ShapeTex`: textured shapes before a textured ground, with every factor known: labels, masks and depth.

Promise: scene i of a seed and of the same names is always the same; shape, texture, ground and colour are drawn independently, so
that none gives another away. Depth shows in size, in the ground's perspective, in haze, in shadows and in what covers what.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinokit.train.counter import Stream
from dinokit.train.data.patterns import NoiseFields
from dinokit.train.data.shapes import OUTLINES, SHAPES, TEXTURE_NAMES, texture

Plane = NDArray[np.float32]
FINER = 3  # masks are drawn this much larger, so that edges are smooth
BAR = 255  # in `Scene.semantic` and `Scene.instances`: the bar before everything
NEAREST = 0.3


@dataclass(frozen=True)
class Scene:
    """An image and what is in it; `shape`, `texture`, `ground` index the names of its `ShapeTex`.

    `semantic` is 0 for the ground, shape + 1 for shapes, `BAR` for the bar; `instances` 0, 1, 2 (nearer), `BAR`. `depth` is about
    0.3 (near) to 2 (far).
    """

    pixels: UInt8[np.ndarray, "s s 3"]
    shape: int
    texture: int
    ground: int
    semantic: UInt8[np.ndarray, "s s"]
    instances: UInt8[np.ndarray, "s s"]
    depth: Float32[np.ndarray, "s s"]


@dataclass(frozen=True)
class ShapeTex:
    """`count` scenes with one or two shapes of these names (two are of one shape and texture); items are pixels alone.

    For shapes or textures never trained on, give `HELD_OUT_SHAPES` or `HELD_OUT_TEXTURES` of `dinokit.train.data.shapes`.
    """

    count: int
    size: int = 128
    seed: int = 0
    shapes: tuple[str, ...] = SHAPES
    textures: tuple[str, ...] = TEXTURE_NAMES
    grounds: tuple[str, ...] = TEXTURE_NAMES
    noise: NoiseFields = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 16:
            raise ValueError(
                f"{self.count} scenes of {self.size} pixels: there must be at least one, of at least 16 pixels."
            )
        object.__setattr__(self, "noise", NoiseFields(self.seed))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "s s 3"]:
        """The pixels of one scene."""
        return self.scene(index).pixels

    def scene(self, index: int) -> Scene:
        """One scene with its labels, masks and depth."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        rng = Stream(self.seed, "shapetex").generator(0, index)
        shape, tex, ground = (int(rng.integers(len(x))) for x in (self.shapes, self.textures, self.grounds))
        size = self.size
        line = plane((np.arange(size) + 0.5) / size - 0.5)
        x, y = np.tile(line, (size, 1)), np.tile(line[:, None], (1, size))
        canvas = _Canvas.of_ground(rng, texture_name=self.grounds[ground], x=x, y=y, noise=self.noise)
        # the smaller is farther away, and so drawn first
        scales = np.sort(rng.uniform(0.3, 0.8, int(rng.integers(1, 3))))
        for number, scale in enumerate(scales):
            canvas.add_shape(rng, self.shapes[shape], self.textures[tex], float(scale), (shape + 1, number + 1))
        if rng.random() < 0.3:
            canvas.add_bar(rng)
        return Scene(canvas.developed(rng), shape, tex, ground, canvas.semantic, canvas.instances, canvas.depth)


@dataclass
class _Canvas:
    """What has been drawn so far; `light` is (x, y) towards the light, `haze` the colour of far away."""

    x: Plane
    y: Plane
    noise: NoiseFields
    rgb: Float32[np.ndarray, "s s 3"]
    depth: Plane
    semantic: UInt8[np.ndarray, "s s"]
    instances: UInt8[np.ndarray, "s s"]
    light: NDArray[np.float64]
    haze: NDArray[np.float64]

    @classmethod
    def of_ground(
        cls, rng: np.random.Generator, *, texture_name: str, x: Plane, y: Plane, noise: NoiseFields
    ) -> _Canvas:
        """A textured plane that leads away from the viewer, upwards in the image."""
        angle, near, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0), rng.uniform(1.2, 2.0)
        depth = plane(1 / (1 / far + (y + 0.5) * (1 / near - 1 / far)))
        canvas = cls(
            x=x, y=y, noise=noise, rgb=np.zeros((*x.shape, 3), np.float32), depth=depth,
            semantic=np.zeros(x.shape, np.uint8), instances=np.zeros(x.shape, np.uint8),
            light=np.array([np.cos(angle), np.sin(angle)]), haze=0.5 + 0.4 * rng.random(3),
        )  # fmt: skip
        canvas.rgb[:] = canvas._painted(rng, texture_name, x * depth, -depth, rng.uniform(3.5, 7))
        return canvas

    def _painted(
        self, rng: np.random.Generator, name: str, u: Plane, v: Plane, periods: float
    ) -> Float32[np.ndarray, "s s 3"]:
        """A texture in two random colours, turned, so many periods to the width of the image."""
        turn, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0, 128, 2)
        c, s = periods * np.cos(turn), periods * np.sin(turn)
        scale = 30 * periods / 5
        grain = self.noise.between(3, plane(v * scale + 64 + shift[0]), plane(u * scale + 64 + shift[1]))
        value = plane(texture(name, plane(c * u - s * v), plane(s * u + c * v), plane(3.2 * grain - 1.6)))
        low, high = two_colours(rng)
        fine = self.noise.at(np.int64(0), plane(128 * v + shift[1]), plane(128 * u + shift[0])) - 0.5
        return np.asarray(low + value[..., None] * (high - low) + 0.12 * fine[..., None], np.float32)

    def add_shape(
        self, rng: np.random.Generator, name: str, texture_name: str, scale: float, labels: tuple[int, int]
    ) -> None:
        """A domed shape, `scale` of the image across, with the shadow that it casts."""
        turn, radius = rng.uniform(-0.5, 0.5), scale / 2
        centre = rng.uniform(-0.5 + 0.6 * radius, 0.5 - 0.6 * radius, 2)
        squeeze = rng.uniform(0.8, 1.0)
        c, s = np.cos(turn), np.sin(turn)
        spin = radius * np.array([[c, -s], [s, c]]) * [1, squeeze]
        cover = _coverage([corners @ spin.T + centre for corners in OUTLINES[name]], len(self.x))
        u, v = plane(self.x - centre[0]), plane(self.y - centre[1])
        paint = self._painted(rng, texture_name, plane(u / scale), plane(v / scale), rng.uniform(2.5, 4.5))
        dome = np.sqrt(np.clip(1 - (u**2 + v**2) / (1.1 * radius) ** 2, 0, 1))
        facing = np.clip(0.75 * dome + 0.45 * (self.light[0] * u + self.light[1] * v) / radius + 0.3, 0.2, 1.25)
        moved = np.rint(-self.light * 0.12 * scale * len(self.x)).astype(int)
        shadow = np.roll(cover, (moved[1], moved[0]), axis=(0, 1))
        self.rgb *= 1 - 0.45 * shadow[..., None]
        depth = NEAREST + 0.16 / scale - 0.15 * scale * dome
        self._put(cover, np.asarray(paint * facing[..., None], np.float32), plane(depth), labels)

    def add_bar(self, rng: np.random.Generator) -> None:
        """A plain bar across the image, nearer than everything."""
        turn, width = rng.uniform(0, np.pi), rng.uniform(0.05, 0.12)
        away = np.abs(self.x * np.cos(turn) + self.y * np.sin(turn) - rng.uniform(-0.35, 0.35))
        cover = plane(np.clip((width / 2 - away) * len(self.x) + 0.5, 0, 1))
        paint = np.ones_like(self.rgb) * rng.uniform(0.1, 0.9) * (1.1 - 0.4 * (2 * away / width)[..., None] ** 2)
        self._put(cover, np.asarray(paint, np.float32), np.full_like(self.depth, NEAREST - 0.05), (BAR, BAR))

    def _put(self, cover: Plane, paint: NDArray[np.float32], depth: Plane, labels: tuple[int, int]) -> None:
        inside = cover >= 0.5
        self.rgb += cover[..., None] * (paint - self.rgb)
        self.depth[inside] = depth[inside]
        self.semantic[inside], self.instances[inside] = labels

    def developed(self, rng: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
        """Haze by depth, light that changes across the image, grain."""
        clear = np.exp(-0.35 * np.maximum(self.depth - NEAREST, 0))[..., None]
        rgb = self.rgb * clear + self.haze * (1 - clear)
        tilt = rng.uniform(-0.4, 0.4, 2)
        rgb = rgb * (1 + tilt[0] * self.x + tilt[1] * self.y)[..., None]
        rgb += rng.uniform(0.005, 0.03) * rng.standard_normal(rgb.shape, np.float32)
        return np.asarray(np.clip(rgb, 0, 1) * 255 + 0.5, np.uint8)


def plane(values: NDArray[Any]) -> Plane:
    """As single precision."""
    return np.asarray(values, np.float32)


def two_colours(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Random, but not alike: at least a third of the way between black and white apart in some channel."""
    first = rng.uniform(0.05, 0.95, 3)
    second = rng.uniform(0.05, 0.95, 3)
    if np.abs(first - second).max() < 1 / 3:
        second = (first + 0.5) % 1
    return first, second


def _coverage(outlines: list[NDArray[np.float64]], size: int) -> Plane:
    """How much of each pixel lies in the first outline and in none of the others."""
    canvas = Image.new("L", (FINER * size, FINER * size))
    draw = ImageDraw.Draw(canvas)
    for i, corners in enumerate(outlines):
        draw.polygon(((corners + 0.5) * FINER * size).ravel().tolist(), fill=0 if i else 255)
    return plane(np.asarray(canvas.reduce(FINER)) / 255)
