"""Maps on photographs: heat maps, overlays, outlined patches, grids, boxes, marks. Arrays in, a Pillow image out.

Patches keep their edges unless a smooth map is asked for, so that a picture shows what the network gave.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real, UInt8
from PIL import Image, ImageDraw

from dinokit.analysis.colour import Scale, categorical, check_finite
from dinokit.analysis.upsample import joint_bilateral

Rgb = tuple[int, int, int]
OUTLIER: Rgb = (0, 229, 255)  # the hue that the sequential map never has
BOX: Rgb = (64, 224, 96)
DARK: Rgb = (16, 16, 20)
WHITE: Rgb = (255, 255, 255)


def heat_map(values: Real[np.ndarray, "gh gw"], scale: Scale, size: tuple[int, int]) -> Image.Image:
    """The map as coloured patches, `size` = (height, width) pixels large.

    Raises:
        ValueError: a value is not finite, or the map is empty.
    """
    return enlarge(scale.colours(_map(values)), size)


def overlay(
    photo: Image.Image,
    values: Real[np.ndarray, "gh gw"],
    scale: Scale,
    *,
    strength: float = 0.62,
    smooth: bool = False,
) -> Image.Image:
    """The map over the photograph, which is turned grey so that only the map has colour.

    `strength` is the map's share in [0, 1]. With `smooth`, the map follows the edges of the photograph (joint bilateral).

    Raises:
        ValueError: a value is not finite, the map is empty, or `strength` is outside of [0, 1].
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it lies in 0 to 1.")
    values = _map(values)
    if smooth:
        fine = joint_bilateral(torch.from_numpy(np.array(values, np.float32))[None], guide(photo))[0].numpy()
        heat = Image.fromarray(scale.colours(fine))
    else:
        heat = heat_map(values, scale, (photo.height, photo.width))
    grey = photo.convert("L").convert("RGB")
    return Image.blend(grey, heat, strength)


def guide(photo: Image.Image) -> Float[torch.Tensor, "3 h w"]:
    """The photograph as colours in [0, 1], as `joint_bilateral` takes it."""
    return torch.from_numpy(np.array(photo.convert("RGB"), np.float32) / 255).permute(2, 0, 1)


def enlarge(colours: UInt8[np.ndarray, "gh gw 3"], size: tuple[int, int]) -> Image.Image:
    """Coloured patches as an image of (height, width), each patch a rectangle with sharp edges."""
    return Image.fromarray(colours).resize((size[1], size[0]), Image.Resampling.NEAREST)


def label_map(labels: Int[np.ndarray, "gh gw"]) -> UInt8[np.ndarray, "gh gw 3"]:
    """A colour a segment; negative labels are dark."""
    labels = np.asarray(labels)
    count = max(int(labels.max(initial=0)) + 1, 1)
    return np.where((labels >= 0)[..., None], categorical(count)[np.maximum(labels, 0)], np.uint8(24))


def edges(length: int, parts: int) -> list[int]:
    """Where `parts` equal patches begin along an axis of `length` pixels, and the end."""
    return [round(length * i / parts) for i in range(parts + 1)]


def outline_patches(image: Image.Image, mask: Bool[np.ndarray, "gh gw"], colour: Rgb = OUTLIER) -> Image.Image:
    """A copy with a line around each group of chosen patches, with dark edges so that it shows on any ground."""
    mask = np.asarray(mask, bool)
    image = image.copy()
    draw = ImageDraw.Draw(image)
    ys, xs = edges(image.height, mask.shape[0]), edges(image.width, mask.shape[1])
    thin = max(1, round(min(image.size) / 200))
    padded = np.pad(mask, 1)
    level = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])  # (edge, column) of lines that lie
    upright = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])  # (row, edge) of lines that stand
    for ink, reach in ((DARK, thin + max(1, thin // 2)), (colour, thin)):
        for row, column in level:
            y = min(max(ys[row], reach), image.height - reach)
            draw.rectangle((xs[column] - reach, y - reach, xs[column + 1] + reach - 1, y + reach - 1), ink)
        for row, column in upright:
            x = min(max(xs[column], reach), image.width - reach)
            draw.rectangle((x - reach, ys[row] - reach, x + reach - 1, ys[row + 1] + reach - 1), ink)
    return image


def patch_grid(image: Image.Image, grid: tuple[int, int], strength: float = 0.35) -> Image.Image:
    """A copy with fine white lines between the patches."""
    lines = image.copy()
    draw = ImageDraw.Draw(lines)
    for y in edges(image.height, grid[0])[1:-1]:
        draw.line((0, y, image.width, y), WHITE)
    for x in edges(image.width, grid[1])[1:-1]:
        draw.line((x, 0, x, image.height), WHITE)
    return Image.blend(image, lines, strength)


def mark_patch(image: Image.Image, patch: tuple[int, int], grid: tuple[int, int]) -> Image.Image:
    """A copy with a ring and a dot on the patch at (row, column)."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    ys, xs = edges(image.height, grid[0]), edges(image.width, grid[1])
    y, x = (ys[patch[0]] + ys[patch[0] + 1]) / 2, (xs[patch[1]] + xs[patch[1] + 1]) / 2
    reach = max((ys[1] - ys[0]) * 0.9, min(image.size) / 28)
    unit = max(1, round(min(image.size) / 160))
    draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=DARK, width=4 * unit)
    inner = reach - unit
    draw.ellipse((x - inner, y - inner, x + inner, y + inner), outline=WHITE, width=2 * unit)
    dot = 2.2 * unit
    draw.ellipse((x - dot, y - dot, x + dot, y + dot), WHITE, DARK, unit)
    return image


def draw_boxes(image: Image.Image, boxes: Sequence[Sequence[float]], colour: Rgb = BOX) -> Image.Image:
    """A copy with boxes (left, top, right, bottom) in pixels of the image."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    width = max(2, round(min(image.size) / 100))
    for left, top, right, bottom in boxes:
        inside = (max(left, 0), max(top, 0), min(right, image.width) - 1, min(bottom, image.height) - 1)
        draw.rectangle(inside, outline=DARK, width=2 * width)
        draw.rectangle(inside, outline=colour, width=width)
    return image


def _map(values: Real[np.ndarray, "gh gw"]) -> Real[np.ndarray, "gh gw"]:
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"a map has rows and columns; this one has shape {values.shape}.")
    return check_finite("the map", values)
