"""Panels: pictures in a grid with captions, headings, colour scales with numbers, a title. Arrays in, a Pillow image out.

A panel is made of sections; each has a heading, tiles or a chart, and what its colours mean.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinokit.analysis.colour import Scale, number

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Rgb = tuple[int, int, int]
PAPER, INK, SOFT, LINE = (255, 255, 255), (28, 30, 34), (105, 110, 118), (222, 225, 230)
MARGIN, GAP, TILE = 32, 14, 236
TITLE_SIZE, HEADING_SIZE, CAPTION_SIZE, NOTE_SIZE = 26, 18, 15, 13
DRAWN = "\N{MIDDLE DOT}\N{HORIZONTAL ELLIPSIS}\N{PLUS-MINUS SIGN}\N{DEGREE SIGN}"  # beyond ASCII, in Pillow's own font
BAR_LENGTH, BAR_HEIGHT = 260, 14


def font(size: float) -> Font:
    """Pillow's own font, so that pictures look alike everywhere."""
    return ImageFont.load_default(size)


def printable(text: str) -> str:
    """In the letters that Pillow's own font has: accents are dropped, what has no Latin letter becomes "?"."""
    return "".join(_letters(c) for c in text)


def _letters(character: str) -> str:
    if character in DRAWN or (character.isascii() and character.isprintable()):
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain and plain.isprintable() else "?"


def fitted(text: str, width: float, face: Font) -> str:
    """The text, its middle left out if it is wider than `width` pixels: both ends of a file name say something."""
    text = printable(text)
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = (kept + 1) // 2
        shorter = f"{text[:head].rstrip()}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (kept - head) :].lstrip()}"
        if face.getlength(shorter) <= width:
            return shorter
    return "\N{HORIZONTAL ELLIPSIS}"


def wrapped(text: str, width: float, face: Font) -> list[str]:
    """Lines of whole words that fit into `width` pixels."""
    lines: list[str] = []
    for word in printable(text).split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(fitted(word, width, face))
    return lines


@dataclass(frozen=True)
class Tile:
    """A picture with a caption, and a second line in grey."""

    image: Image.Image
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Key:
    """A colour and what it stands for."""

    colour: Rgb
    text: str


@dataclass(frozen=True)
class Section:
    """Tiles under a heading, or one chart as wide as the panel. `columns` tiles fill the width; as the panel's if 0.

    `scale` and `keys` say what the colours mean, at the right end of the heading's line.
    """

    heading: str = ""
    tiles: Sequence[Tile] = ()
    scale: Scale | None = None
    keys: Sequence[Key] = field(default=())
    chart: Image.Image | None = None
    columns: int = 0


def panel(
    sections: Sequence[Section], *, title: str, subtitle: str = "", columns: int = 4, tile: int = TILE
) -> Image.Image:
    """Everything under one title.

    `columns` tiles stand in a row, each `tile` pixels wide and as high as its picture's shape asks for.

    Raises:
        ValueError: no section, or fewer than one column.
    """
    if not sections or columns < 1:
        raise ValueError(f"a panel of {len(sections)} sections and {columns} columns; both are at least 1.")
    width = panel_width(columns, tile)
    parts = [_title(title, subtitle, width)]
    parts += [part for section in sections for part in _section(section, columns, tile, width)]
    sheet = Image.new("RGB", (width, sum(part.height for part in parts) + MARGIN - GAP), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def panel_width(columns: int, tile: int = TILE) -> int:
    """Pixels across a panel; charts are made `panel_width(...) - 2 * MARGIN` wide."""
    return 2 * MARGIN + columns * tile + (columns - 1) * GAP


def _title(title: str, subtitle: str, width: int) -> Image.Image:
    large, small = font(TITLE_SIZE), font(CAPTION_SIZE)
    room = width - 2 * MARGIN
    heads, lines = wrapped(title, room, large), wrapped(subtitle, room, small)
    height = MARGIN + len(heads) * (TITLE_SIZE + 8) + len(lines) * (CAPTION_SIZE + 6) + 8
    strip = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    y = MARGIN - 6
    for line in heads:
        draw.text((MARGIN, y), line, INK, large)
        y += TITLE_SIZE + 8
    for line in lines:
        draw.text((MARGIN, y + 2), line, SOFT, small)
        y += CAPTION_SIZE + 6
    return strip


def _section(section: Section, columns: int, tile: int, width: int) -> list[Image.Image]:
    parts = []
    if section.heading or section.scale or section.keys:
        parts.append(_heading(section, width))
    if section.columns:
        columns = section.columns
        tile = (width - 2 * MARGIN - (columns - 1) * GAP) // columns
    rows = range(0, len(section.tiles), columns)
    parts.extend(_row(section.tiles[first : first + columns], tile, width) for first in rows)
    if section.chart is not None:
        strip = Image.new("RGB", (width, section.chart.height + GAP), PAPER)
        strip.paste(section.chart, (MARGIN, 0))
        parts.append(strip)
    return parts


def _heading(section: Section, width: int) -> Image.Image:
    """Rule, heading at the left, legend at the right; the legend moves to a line of its own where both don't fit."""
    face = font(HEADING_SIZE)
    legend = _legend(section)
    room = width - 2 * MARGIN
    beside = legend is not None and legend.width + 24 + face.getlength(printable(section.heading)) <= room
    text_width = room - (legend.width + 24 if legend is not None and beside else 0)
    text_lines = wrapped(section.heading, text_width, face)
    text_height = len(text_lines) * (HEADING_SIZE + 6)
    legend_height = legend.height if legend is not None else 0
    height = max(text_height, legend_height) if beside else text_height + legend_height
    strip = Image.new("RGB", (width, 12 + height + 10), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.line((MARGIN, 2, width - MARGIN - 1, 2), LINE, 1)
    for i, line in enumerate(text_lines):
        draw.text((MARGIN, 12 + i * (HEADING_SIZE + 6)), line, INK, face)
    if legend is not None:
        legend = legend if legend.width <= room else legend.crop((0, 0, room, legend.height))
        place = (width - MARGIN - legend.width, 12) if beside else (MARGIN, 12 + text_height)
        strip.paste(legend, place)
    return strip


def _legend(section: Section) -> Image.Image | None:
    parts = [key_strip(section.keys)] if section.keys else []
    if section.scale is not None:
        parts.append(colour_bar(section.scale))
    if not parts:
        return None
    strip = Image.new(
        "RGB", (sum(part.width for part in parts) + 24 * (len(parts) - 1), max(p.height for p in parts)), PAPER
    )
    x = 0
    for part in parts:
        strip.paste(part, (x, 0))
        x += part.width + 24
    return strip


def _row(tiles: Sequence[Tile], tile: int, width: int) -> Image.Image:
    face, small = font(CAPTION_SIZE), font(NOTE_SIZE)
    pictures = [fit_width(each.image, tile) for each in tiles]
    tallest = max(picture.height for picture in pictures)
    lines = (CAPTION_SIZE + 7 if any(t.caption for t in tiles) else 0) + (
        NOTE_SIZE + 6 if any(t.note for t in tiles) else 0
    )
    strip = Image.new("RGB", (width, tallest + lines + GAP), PAPER)
    draw = ImageDraw.Draw(strip)
    for i, (each, picture) in enumerate(zip(tiles, pictures, strict=True)):
        x = MARGIN + i * (tile + GAP)
        strip.paste(picture, (x, 0))
        y = picture.height + 5
        if each.caption:
            draw.text((x, y), fitted(each.caption, tile, face), INK, face)
            y += CAPTION_SIZE + 5
        if each.note:
            draw.text((x, y), fitted(each.note, tile, small), SOFT, small)
    return strip


def fit_width(image: Image.Image, width: int) -> Image.Image:
    """The picture `width` pixels wide, in its own shape."""
    image = image.convert("RGB")
    height = max(1, round(image.height * width / image.width))
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def colour_bar(scale: Scale, length: int = BAR_LENGTH) -> Image.Image:
    """The colours of a scale from left to right, round numbers under it, what they count above it.

    A pointed right end says that there were values above it.
    """
    small = font(NOTE_SIZE)
    label = printable(scale.label)
    pad = 26
    strip = Image.new("RGB", (max(length + 2 * pad, math.ceil(small.getlength(label)) + 2 * pad), 54), PAPER)
    draw = ImageDraw.Draw(strip)
    left, top = strip.width - length - pad, 19
    if label:
        draw.text((left, 0), label, SOFT, small)
    across = np.linspace(0, 1, length)
    even = scale.low + (scale.high - scale.low) * across
    row = scale.colours(scale.low * (scale.high / scale.low) ** across if scale.log else even)
    strip.paste(Image.fromarray(np.repeat(row[None], BAR_HEIGHT, axis=0)), (left, top))
    if scale.cut:
        end = left + length
        draw.polygon(
            [(end, top), (end + 9, top + BAR_HEIGHT // 2), (end, top + BAR_HEIGHT - 1)], tuple(row[-1].tolist())
        )
    for value in scale.ticks():
        x = left + float(scale.place(np.array([value]))[0]) * (length - 1)
        draw.line((x, top + BAR_HEIGHT, x, top + BAR_HEIGHT + 3), SOFT)
        draw.text((x, top + BAR_HEIGHT + 4), number(value), INK, small, anchor="ma")
    return strip


def key_strip(keys: Sequence[Key]) -> Image.Image:
    """Coloured squares with their meaning, in one line."""
    small = font(NOTE_SIZE)
    widths = [22 + math.ceil(small.getlength(printable(key.text))) + 16 for key in keys]
    strip = Image.new("RGB", (max(sum(widths) - 16, 1), 24), PAPER)
    draw = ImageDraw.Draw(strip)
    x = 0
    for key, width in zip(keys, widths, strict=True):
        draw.rounded_rectangle((x, 5, x + 14, 19), 3, key.colour)
        draw.text((x + 21, 12), printable(key.text), INK, small, anchor="lm")
        x += width
    return strip
