"""What the pictures of `see` have in common: their result, their words, their tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from dinokit.analysis.colour import Scale, number
from dinokit.analysis.panel import Key, Tile
from dinokit.analysis.render import OUTLIER as OUTLINE
from dinokit.analysis.render import heat_map, outline_patches, overlay
from dinokit.inspection.look import Look

CANVAS = 448  # shorter side on which lines are drawn; panels show it about half as large, which makes the lines smooth
SMALL = 112  # pictures below this are enlarged with sharp pixels
Map = Float[np.ndarray, "gh gw"]


@dataclass(frozen=True)
class Seen:
    """A picture, and what it shows as plain values."""

    picture: Image.Image
    numbers: dict[str, Any]


def canvas(found: Look) -> Image.Image:
    """The photograph, large enough to draw on."""
    photo = found.photo
    factor = CANVAS / min(photo.size)
    if factor <= 1:
        return photo
    size = (round(photo.width * factor), round(photo.height * factor))
    return photo.resize(size, Image.Resampling.NEAREST if min(photo.size) < SMALL else Image.Resampling.BICUBIC)


def photo_tile(found: Look, mask: Bool[np.ndarray, "gh gw"] | None = None) -> Tile:
    """The photograph with the patches that stand out, by default those after the block that is looked at."""
    mask = found.outlier_map if mask is None else mask
    note = f"{int(mask.sum())} outliers" if mask.any() else "no outliers"
    return Tile(outline_patches(canvas(found), mask), found.name or "photograph", note)


def heat_tile(found: Look, values: Map, scale: Scale, caption: str, note: str = "") -> Tile:
    """The map alone, a rectangle a patch."""
    ground = canvas(found)
    return Tile(heat_map(values, scale, (ground.height, ground.width)), caption, note)


def overlay_tile(
    found: Look,
    values: Map,
    scale: Scale,
    caption: str,
    note: str = "",
    *,
    strength: float = 0.62,
    smooth: bool = False,
) -> Tile:
    """The map over the photograph."""
    return Tile(overlay(canvas(found), values, scale, strength=strength, smooth=smooth), caption, note)


def outlier_keys(found: Look) -> list[Key]:
    """The legend of outlined patches, if there are any."""
    return [Key(OUTLINE, "outlier")] if found.outlier_map.any() else []


def balanced(count: int, most: int = 8) -> int:
    """Tiles in a row, so that rows are as full as can be: at least 4, at most `most`."""
    rows = -(-count // most)
    return max(4, -(-count // rows))


def span(values: Map, unit: str = "") -> str:
    """Smallest and largest, for a note."""
    return f"{number(float(values.min()))} to {number(float(values.max()))}{unit}"


def model_name(found: Look) -> str:
    """As it was asked for, a path by its last part."""
    name, comma, form = found.model.partition(", ")
    return (Path(name).name if Path(name).exists() else name) + comma + form


def subtitle(found: Look) -> str:
    """Which model, how many pixels and tokens."""
    return f"{model_name(found)} \N{MIDDLE DOT} {found.sizes}"


def block(found: Look) -> str:
    """The block that is looked at, as people count."""
    return f"block {found.layer + 1} of {found.depth}"


def about(found: Look) -> dict[str, Any]:
    """What every record of numbers begins with."""
    return {
        "image": found.name,
        "model": found.model,
        "grid": list(found.grid),
        "num_registers": found.num_registers,
        "num_patches": found.grid[0] * found.grid[1],
    }


def peak(values: Map) -> dict[str, Any]:
    """Where a map is largest."""
    row, column = divmod(int(values.argmax()), values.shape[1])
    return {"row": row, "column": column, "value": float(values.max())}
