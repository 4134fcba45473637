"""Charts of token norms and attention: strips of dots by layer, histograms, stacked bars. Arrays in, a Pillow image out.

Marks are drawn three times too large and scaled down, so that they are smooth; text and axes are drawn afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from dinokit.analysis.colour import Scale, check_finite, number
from dinokit.analysis.panel import CAPTION_SIZE, INK, LINE, NOTE_SIZE, PAPER, SOFT, Rgb, fitted, font, printable

FINE = 3
PATCH: Rgb = (86, 108, 150)
OUTLIER: Rgb = (214, 40, 57)
CLS: Rgb = (240, 150, 0)
REGISTER: Rgb = (0, 140, 120)
LEFT, RIGHT, BOTTOM, TOP = 62, 22, 46, 10


class _Axes:
    """The area inside the axes, in fine pixels, and where values lie in it."""

    def __init__(self, size: tuple[int, int], low: float, high: float, *, log: bool) -> None:
        self.width, self.height = size
        self.box = (LEFT, TOP, size[0] - RIGHT, size[1] - BOTTOM)
        self.image = Image.new("RGB", (FINE * size[0], FINE * size[1]), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.log = log and low > 0
        self.scale = Scale(low, high, log=self.log)

    def ys(self, values: Float[np.ndarray, " n"]) -> list[float]:
        return [FINE * (self.box[3] - place * (self.box[3] - self.box[1])) for place in self.scale.place(values)]

    def y(self, value: float) -> float:
        return self.ys(np.array([value]))[0]

    def dot(self, x: float, y: float, radius: float, colour: Rgb) -> None:
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)

    def finish(self, label: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """Scaled down, with the vertical axis."""
        image = self.image.resize((self.width, self.height), Image.Resampling.LANCZOS)
        draw = ImageDraw.Draw(image)
        small = font(NOTE_SIZE)
        for value in self.scale.ticks():
            y = self.y(value) / FINE
            draw.text((LEFT - 8, y), number(value), SOFT, small, anchor="rm")
        turned = Image.new("RGB", (math.ceil(small.getlength(label)) + 2, NOTE_SIZE + 5), PAPER)
        ImageDraw.Draw(turned).text((1, 0), label, SOFT, small)
        turned = turned.rotate(90, expand=True)
        image.paste(turned, (0, max(0, round((self.box[1] + self.box[3] - turned.height) / 2))))
        return image, draw

    def rules(self) -> None:
        for value in self.scale.ticks():
            y = self.y(value)
            self.draw.line((FINE * self.box[0], y, FINE * self.box[2], y), LINE, FINE)


def layer_chart(
    norms: Float[np.ndarray, "layers n"],
    outliers: Bool[np.ndarray, "layers n"],
    lines: Mapping[str, tuple[Rgb, Float[np.ndarray, " layers"]]],
    *,
    width: int,
    height: int = 300,
    label: str = "norm",
) -> Image.Image:
    """A column of dots a layer, one a patch, outliers in red and larger; other tokens as lines through the layers.

    Layer 0 is what enters the first block. The axis is logarithmic; what is far below all patches is drawn at its lower end.

    Raises:
        ValueError: a value is not finite.
    """
    norms = check_finite("norms", np.asarray(norms, np.float64))
    everything = np.concatenate([norms.ravel(), *(np.asarray(values).ravel() for _, values in lines.values())])
    positive = everything[everything > 0]
    # Registers that have learned nothing start at 1e-5; they must not squeeze the patches into one line.
    floor = float(np.percentile(norms, 1)) / 4
    low = max(float(positive.min()), floor) / 1.15 if positive.size else 0.0
    high = float(everything.max()) * 1.15
    axes = _Axes((width, height), low, max(high, low + 1e-9), log=low > 0)
    axes.rules()
    layers, count = norms.shape
    centres = _centres(axes, layers)
    step = FINE * (axes.box[2] - axes.box[0]) / layers
    heights = [axes.ys(row) for row in norms]
    spread = np.modf(np.arange(count) * 0.6180339887)[0] - 0.5  # the golden ratio: even, and the same every time
    radius = FINE * (1.4 if count > 300 else 2.2)
    for layer, x in enumerate(centres):
        for chosen, colour, size in ((~outliers[layer], PATCH, radius), (outliers[layer], OUTLIER, radius * 1.9)):
            for patch in np.flatnonzero(chosen):
                axes.dot(x + 0.55 * step * spread[patch], heights[layer][patch], size, colour)
    for colour, values in lines.values():
        _line(axes, centres, values, colour)
    image, draw = axes.finish(label)
    _layer_axis(draw, axes, centres, height)
    return image


def histogram(
    values: Float[np.ndarray, " n"],
    marked: Bool[np.ndarray, " n"],
    *,
    width: int,
    height: int = 240,
    label: str = "norm",
    bins: int = 48,
) -> Image.Image:
    """How many patches have which value; `marked` ones in red. Counts are on a logarithmic axis, so that few show beside many.

    Raises:
        ValueError: a value is not finite.
    """
    values = check_finite("values", np.asarray(values, np.float64))
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(high), 1e-9):
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    borders = np.linspace(low, high, bins + 1)
    counts, red = np.histogram(values, borders)[0], np.histogram(values[marked], borders)[0]
    axes = _Axes((width, height), 0.7, max(10.0, 1.4 * float(counts.max())), log=True)
    axes.rules()
    left, right = FINE * axes.box[0], FINE * axes.box[2]
    step = (right - left) / bins
    floor = FINE * axes.box[3]
    for i in range(bins):
        for count, colour in ((counts[i], PATCH), (red[i], OUTLIER)):
            if count:
                axes.draw.rectangle(
                    (left + step * i + FINE * 0.7, axes.y(float(count)), left + step * (i + 1) - FINE * 0.7, floor),
                    colour,
                )
    image, draw = axes.finish("patches")
    small = font(NOTE_SIZE)
    across = Scale(low, high)
    for value in across.ticks():
        x = axes.box[0] + float(across.place(np.array([value]))[0]) * (axes.box[2] - axes.box[0])
        draw.line((x, axes.box[3], x, axes.box[3] + 4), SOFT)
        draw.text((x, axes.box[3] + 7), number(value), INK, small, anchor="ma")
    draw.line((axes.box[0], axes.box[3], axes.box[2], axes.box[3]), SOFT)
    draw.text(((axes.box[0] + axes.box[2]) / 2, height - 4), printable(label), SOFT, small, anchor="md")
    return image


def band_chart(
    bands: Sequence[tuple[Rgb, Float[np.ndarray, " layers"], Float[np.ndarray, " layers"]]],
    lines: Sequence[tuple[Rgb, Float[np.ndarray, " layers"]]],
    *,
    width: int,
    height: int = 300,
    label: str = "norm",
) -> Image.Image:
    """Areas between two values a layer, and lines over them, in the order given; the axis is logarithmic.

    Raises:
        ValueError: a value is not finite, or none is positive.
    """
    areas = [np.concatenate([low, high]) for _, low, high in bands]
    everything = check_finite("values", np.concatenate([*areas, *(values for _, values in lines)]).astype(np.float64))
    main = everything if not areas else np.concatenate(areas)
    floor = float(main[main > 0].min(initial=np.inf)) / 4
    low = max(float(everything[everything > 0].min(initial=np.inf)), floor if np.isfinite(floor) else 0) / 1.15
    axes = _Axes((width, height), low, max(float(everything.max()) * 1.15, low * 1.01), log=True)
    axes.rules()
    layers = len(lines[0][1]) if lines else len(bands[0][1])
    centres = _centres(axes, layers)
    for colour, lower, upper in bands:
        outline = list(zip(centres, axes.ys(upper), strict=True))
        outline += list(zip(centres, axes.ys(lower), strict=True))[::-1]
        axes.draw.polygon(outline, colour)
    axes.rules()
    for colour, values in lines:
        _line(axes, centres, values, colour)
    image, draw = axes.finish(label)
    _layer_axis(draw, axes, centres, height)
    return image


def layer_histogram(
    counts: Float[np.ndarray, "layers bins"], edges: Float[np.ndarray, " edges"], *, width: int, height: int = 300
) -> tuple[Image.Image, Scale]:
    """The distribution of norms in each layer as a column of colours, and the scale of these: share of the layer's patches in %.

    `edges` are one more than bins, rising by equal factors; bins without a patch stay white.

    Raises:
        ValueError: no counts at all, or a number of edges that does not fit.
    """
    if len(edges) != counts.shape[1] + 1:
        raise ValueError(f"{counts.shape[1]} bins have {counts.shape[1] + 1} edges, not {len(edges)}.")
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    scale = Scale.logarithmic(shares, "patches of the layer, %")
    axes = _Axes((width, height), float(edges[0]), float(edges[-1]), log=True)
    centres, ys = _centres(axes, len(counts)), axes.ys(np.asarray(edges, np.float64))
    half = (centres[1] - centres[0]) / 2 if len(centres) > 1 else FINE * (axes.box[2] - axes.box[0]) / 2
    for x, row in zip(centres, shares, strict=True):
        colours = scale.colours(np.maximum(row, scale.low))
        for i in np.flatnonzero(row > 0):
            axes.draw.rectangle((x - half + FINE, ys[i + 1], x + half - FINE, ys[i]), tuple(colours[i].tolist()))
    image, draw = axes.finish("norm")
    _layer_axis(draw, axes, centres, height)
    return image, scale


def _centres(axes: _Axes, layers: int) -> list[float]:
    """Where the columns of the layers stand, in fine pixels."""
    step = FINE * (axes.box[2] - axes.box[0]) / layers
    return [FINE * axes.box[0] + step * (i + 0.5) for i in range(layers)]


def _line(axes: _Axes, centres: Sequence[float], values: Float[np.ndarray, " layers"], colour: Rgb) -> None:
    points = list(zip(centres, axes.ys(np.asarray(values, np.float64)), strict=True))
    if len(points) > 1:
        axes.draw.line(points, colour, round(1.8 * FINE), joint="curve")
    for x, y in points:
        axes.dot(x, y, FINE * 2.6, colour)


def _layer_axis(draw: ImageDraw.ImageDraw, axes: _Axes, centres: Sequence[float], height: int) -> None:
    small = font(NOTE_SIZE)
    for layer in range(0, len(centres), math.ceil(len(centres) / 26)):
        draw.text((centres[layer] / FINE, axes.box[3] + 7), str(layer), INK, small, anchor="ma")
    middle = (axes.box[0] + axes.box[2]) / 2
    draw.text((middle, height - 4), "after block (0: what enters the first)", SOFT, small, anchor="md")


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[float]]], colours: Sequence[Rgb], *, width: int, row_height: int = 26
) -> Image.Image:
    """A bar a row, divided into shares that are coloured in order; shares of 6 % or more carry their number.

    Raises:
        ValueError: a share is not finite or negative, a row has another number of shares than there are colours.
    """
    face, small = font(CAPTION_SIZE), font(NOTE_SIZE)
    names = max((face.getlength(printable(name)) for name, _ in rows), default=0)
    left = min(round(names) + 16, width // 3)
    image = Image.new("RGB", (width, row_height * len(rows) + 4), PAPER)
    draw = ImageDraw.Draw(image)
    for i, (name, shares) in enumerate(rows):
        values = check_finite(name, np.asarray(shares, np.float64))
        if len(values) != len(colours) or (values < 0).any():
            raise ValueError(f"{name!r} has shares {list(values)} for {len(colours)} colours; one each, none negative.")
        top, x = i * row_height, float(left)
        draw.text((0, top + row_height / 2), fitted(name, left - 12, face), INK, face, anchor="lm")
        for share, colour in zip(values, colours, strict=True):
            end = x + share * (width - left)
            if round(end) > round(x):
                draw.rectangle((round(x), top + 4, round(end) - 1, top + row_height - 3), colour)
            if share >= 0.06:
                bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150
                draw.text(
                    ((x + end) / 2, top + row_height / 2),
                    f"{100 * share:.0f} %",
                    INK if bright else PAPER,
                    small,
                    anchor="mm",
                )
            x = end
    return image
