"""A picture of who resembles whom: thumbnails along both edges, one coloured cell a pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinokit.images import decode

CELL, GAP, TITLE, LEGEND = 64, 3, 44, 56
INK, PAPER = (32, 33, 36), (255, 255, 255)
# From blue over paper to red, at -1, 0 and 1; readable with red-green blindness.
STOPS = np.array([[33, 102, 172], [247, 247, 247], [178, 24, 43]], np.float64)


def colour(value: float) -> tuple[int, int, int]:
    """Of a cosine in [-1, 1]; outside of it the end's."""
    place = min(max(value, -1.0), 1.0) + 1.0
    low = min(int(place), 1)
    red, green, blue = STOPS[low] + (STOPS[low + 1] - STOPS[low]) * (place - low)
    return round(red), round(green), round(blue)


def similarity_sheet(paths: Sequence[Path], similarity: np.ndarray, title: str) -> Image.Image:
    """The matrix as an image; entry (i, j) of `similarity` (n, n) compares `paths[i]` with `paths[j]`."""
    n, step = len(paths), CELL + GAP
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    width = max(step * (n + 1) + GAP, round(font.getlength(title)) + 4 * GAP)
    sheet = Image.new("RGB", (width, TITLE + step * (n + 1) + LEGEND), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * GAP, TITLE / 2), title, INK, font, anchor="lm")
    for i, path in enumerate(paths):
        thumbnail = _thumbnail(path)
        sheet.paste(thumbnail, (GAP + step * (i + 1), TITLE))
        sheet.paste(thumbnail, (GAP, TITLE + step * (i + 1)))
        for j in range(n):
            x, y = GAP + step * (j + 1), TITLE + step * (i + 1)
            value = float(similarity[i, j])
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), colour(value))
            ink = PAPER if abs(value) > 0.6 else INK
            draw.text((x + CELL / 2, y + CELL / 2), f"{value:+.2f}", ink, small, anchor="mm")
    _legend(draw, TITLE + step * (n + 1) + LEGEND / 2, small)
    return sheet


def _thumbnail(path: Path) -> Image.Image:
    image = decode(path).image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((CELL, CELL), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _legend(draw: ImageDraw.ImageDraw, y: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> None:
    left, length = 40, 200
    for x in range(length):
        draw.line((left + x, y - 7, left + x, y + 7), colour(2 * x / (length - 1) - 1))
    draw.text((left - 8, y), "-1", INK, font, anchor="rm")
    draw.text((left + length + 8, y), "+1   cosine, mean of the collection taken off", INK, font, anchor="lm")
