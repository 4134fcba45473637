"""Outlines of twelve shapes and four to hold out; twelve textures and four to hold out, as functions of place.

Outlines are corners (x, y) about within the unit circle, followed by those of holes; textures give 0 to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

Outline = Float64[np.ndarray, "c 2"]
Place = NDArray[np.floating[Any]]
TURN = 2 * np.pi


def _polar(radius: NDArray[np.float64], start: float = -np.pi / 2) -> Outline:
    angle = start + np.linspace(0, TURN, len(radius), endpoint=False)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _regular(corners: int) -> Outline:
    return _polar(np.ones(corners))


def _star(points: int, inner: float) -> Outline:
    return _polar(np.where(np.arange(2 * points) % 2, inner, 1.0))


def _gear() -> Outline:
    return _polar(np.where(np.arange(64) % 8 < 4, 1.0, 0.72))


def _heart() -> Outline:
    t = np.linspace(0, TURN, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2], axis=1) / 17


def _crescent() -> Outline:
    t = np.linspace(0.6, TURN - 0.6, 32)
    back = np.linspace(TURN - 0.85, 0.85, 32)
    outer = np.stack([np.cos(t), np.sin(t)], axis=1)
    end = outer[-1]
    inner = np.stack([np.cos(back), np.sin(back)], axis=1)
    inner = inner * (end[1] / inner[0, 1])
    return np.concatenate([outer, inner + np.array([end[0] - inner[0, 0], 0])]) - [-0.15, 0]


def _drop() -> Outline:
    t = np.linspace(0, TURN, 40, endpoint=False)
    return np.stack([0.75 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], axis=1)


def _corners(*places: tuple[float | int, float | int]) -> Outline:
    return np.array(places)


def _cross(a: float = 0.33) -> Outline:
    return _corners(
        (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)
    )  # fmt: skip


OUTLINES: dict[str, tuple[Outline, ...]] = {
    "triangle": (_regular(3),),
    "square": (_regular(4),),
    "pentagon": (_regular(5),),
    "disc": (_regular(48),),
    "star": (_star(5, 0.42),),
    "spark": (_star(4, 0.3),),
    "cross": (_cross(),),
    "ring": (_regular(48), 0.55 * _regular(48)),
    "frame": (_regular(4), 0.55 * _regular(4)),
    "heart": (_heart(),),
    "crescent": (_crescent(),),
    "arrow": (_corners((0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)),),
    # held out
    "gear": (_gear(),),
    "half_disc": (np.concatenate([_polar(np.ones(48))[:25], [[0, 1]]]) - [0.4, 0],),
    "ell": (_corners((-0.8, -0.9), (-0.1, -0.9), (-0.1, 0.3), (0.8, 0.3), (0.8, 0.95), (-0.8, 0.95)),),
    "drop": (_drop(),),
}
SHAPES, HELD_OUT_SHAPES = tuple(OUTLINES)[:12], tuple(OUTLINES)[12:]


def _edge(x: Place) -> Place:
    """A wave with flat tops."""
    return np.asarray(np.clip(0.5 + 1.5 * np.sin(TURN * x), 0, 1))


def _saw(x: Place) -> Place:
    return np.asarray(np.abs(2 * (x - np.floor(x)) - 1))


def _step(x: Place, width: float = 0.08) -> Place:
    """0 below zero, 1 above, in between over `width`."""
    return np.asarray(np.clip(0.5 + x / width, 0, 1))


def _bricks(x: Place, y: Place) -> Place:
    along = x + 0.5 * (np.floor(2 * y) % 2)
    gap = np.minimum(np.abs(along - np.rint(along)), 0.5 * np.abs(2 * y - np.rint(2 * y)))
    return _step(gap - 0.06, 0.05)


TEXTURE_NAMES = (
    "stripes", "checks", "dots", "rings", "zigzag", "bricks", "hatch", "marble", "clouds", "patches", "waves", "veins",
)  # fmt: skip
HELD_OUT_TEXTURES = "diamonds", "spokes", "plaid", "scales"


def texture(name: str, x: Place, y: Place, noise: Place) -> Place:
    """The texture, 0 to 1, at places (x, y), one period a unit, with noise in about [-1, 1] there.

    Raises:
        ValueError: no texture has this name.
    """
    match name:
        case "stripes":
            return _edge(x)
        case "checks":
            return _step(np.sin(TURN * x / 1.5) * np.sin(TURN * y / 1.5), 0.4)
        case "dots":
            return _step(0.3 - np.hypot(x - np.rint(x), y - np.rint(y)), 0.15)
        case "rings":
            return _edge(np.hypot(x, y))
        case "zigzag":
            return _edge(x + 0.7 * _saw(y))
        case "bricks":
            return _bricks(x, y)
        case "hatch":
            return np.maximum(_step(0.1 - _saw(x)), _step(0.1 - _saw(y)))
        case "marble":
            return np.asarray(0.5 + 0.5 * np.sin(TURN * (0.5 * x + 1.6 * noise)))
        case "clouds":
            return np.asarray(np.clip(0.5 + 0.8 * noise, 0, 1))
        case "patches":
            return _step(noise, 0.1)
        case "waves":
            return _edge(x + 0.25 * np.sin(TURN * y / 2))
        case "veins":
            return 1 - _step(np.abs(noise) - 0.12, 0.15)
        case "diamonds":
            return _step(_saw(x) + _saw(y) - 1, 0.15)
        case "spokes":
            return _edge(np.arctan2(y, x) * (8 / TURN))
        case "plaid":
            return 0.5 * (_edge(x / 1.5) + _edge(y / 1.5))
        case "scales":
            return _saw(1.5 * np.hypot(x - np.rint(x), y - np.floor(y)))
    raise ValueError(f"there is no texture {name!r}; there are {', '.join(TEXTURE_NAMES + HELD_OUT_TEXTURES)}.")
