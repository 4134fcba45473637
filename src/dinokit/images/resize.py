"""A crop of a resized image, without making the resized image: bit for bit what Pillow would give.

Pillow resamples in two passes of fixed-point taps; an output pixel depends on its own taps only. So a crop can be had
(a) from a box of the source, where whole output pixels meet whole source pixels, (b) from the full resize if that is
small, or (c) by doing the same integer arithmetic for the crop alone.
Source: Pillow's documentation of its filters; arithmetic as observed in Pillow 12.3 and 13.0, pinned by property tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
RESAMPLES: tuple[Resample, ...] = get_args(Resample)

PRECISION_BITS = 32 - 8 - 2  # 8 bits of pixel, 2 for filters whose positive weights exceed 1
BICUBIC_A = -0.5
# Full resizes up to this many times the crop, or this many pixels, cost less than being clever.
FULL_TIMES_CROP = 8
FULL_PIXELS = 1 << 20
CHUNK_PIXELS = 1 << 20  # of source or result in work at a time in the integer route
EXACT_FLOAT32 = 1 << 24  # Pillow keeps box coordinates as float32
EXACT_STEPS = 1 << 24
PILLOW_MAJOR = int(PIL.__version__.split(".")[0])

Values = Float64[np.ndarray, "..."]


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def _box_filter(x: Values) -> Values:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: Values) -> Values:
    triangle: Values = np.maximum(1.0 - np.abs(x), 0.0)
    return triangle


def _sinc(x: Values) -> Values:
    angle = np.where(x == 0, 1.0, x * math.pi)
    return np.where(x == 0, 1.0, np.sin(angle) / angle)


def _hamming(x: Values) -> Values:
    angle = np.where(x == 0, 1.0, np.abs(x) * math.pi)
    window = np.sin(angle) / angle * (np.float64(np.float32(0.54)) + np.float64(np.float32(0.46)) * np.cos(angle))
    return np.where(x == 0, 1.0, np.where(np.abs(x) >= 1, 0.0, window))


def _cubic(x: Values) -> Values:
    x, a = np.abs(x), BICUBIC_A
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Values) -> Values:
    return np.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), 0.0)


class Kernel(NamedTuple):
    """A resampling filter: weight by distance in output pixels, zero beyond `support`."""

    support: float
    weight: Callable[[Values], Values]


KERNELS: dict[str, Kernel] = {
    "box": Kernel(0.5, _box_filter),
    "bilinear": Kernel(1.0, _triangle),
    "hamming": Kernel(1.0, _hamming),
    "bicubic": Kernel(2.0, _cubic),
    "lanczos": Kernel(3.0, _lanczos),
}


@dataclass(frozen=True)
class Taps:
    """For n neighbouring output pixels of an axis: first source index, fixed-point weights (rows filled with zeros)."""

    first: Int64[np.ndarray, "n"]
    weights: Int64[np.ndarray, "n k"]

    def same(self, other: Taps) -> bool:
        """Whether both give the same result for every image."""
        mine, theirs = self._packed(), other._packed()
        return np.array_equal(mine.first, theirs.first) and np.array_equal(mine.weights, theirs.weights)

    def _packed(self) -> Taps:
        """Without the zero weights at either end of a row, which depend on the last bit of a division."""
        used: Bool[np.ndarray, "n k"] = self.weights != 0
        lead = used.argmax(axis=1)
        columns = np.arange(self.weights.shape[1])[None] + lead[:, None]
        inside = columns < self.weights.shape[1]
        moved = np.where(inside, np.take_along_axis(self.weights, np.where(inside, columns, 0), axis=1), 0)
        return Taps(self.first + lead, moved[:, : max(1, int((moved != 0).any(axis=0).sum()))])


def taps(size_in: int, start: int, stop: int, size_out: int, wanted: range, kernel: Kernel) -> Taps:
    """Taps of the output pixels `wanted`, where `size_out` pixels cover the source from `start` to `stop`."""
    scale = (stop - start) / size_out
    stretch = max(scale, 1.0)  # shrinking widens the filter: this is what makes it antialiased
    support = kernel.support * stretch
    centre = start + (np.arange(wanted.start, wanted.stop) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centre + support + 0.5), size_in).astype(np.int64)
    index = first[:, None] + np.arange(max(1, int((last - first).max())))[None]
    weights = kernel.weight((index - centre[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(index < last[:, None], weights, 0.0)
    total = np.cumsum(weights, axis=1)[:, -1:]  # one after the other, as a loop adds; `sum` adds in pairs
    weights = np.divide(weights, total, out=weights, where=total != 0)
    scaled = weights * (1 << PRECISION_BITS)
    return Taps(first, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64))


class _Span(NamedTuple):
    """Output pixels `low` to `high` of one axis, and the source pixels `start` to `stop` they cover exactly."""

    low: int
    high: int
    start: int
    stop: int


def _span(size_in: int, size_out: int, first: int, count: int, kernel: Kernel) -> _Span:
    """The smallest span around the wanted pixels whose ends fall on whole source pixels; at most the whole axis."""
    common = math.gcd(size_in, size_out)
    step_in, step_out = size_in // common, size_out // common
    low, high = first // step_out, -(-(first + count) // step_out)
    span = _Span(low * step_out, high * step_out, low * step_in, high * step_in)
    whole = _Span(0, size_out, 0, size_in)
    if span == whole or span.stop >= EXACT_FLOAT32:
        return whole
    # Equal in real numbers; whether also in the last bit of floating point is looked up rather than believed.
    wanted = range(first, first + count)
    direct = taps(size_in, 0, size_in, size_out, wanted, kernel)
    shifted = range(first - span.low, first - span.low + count)
    boxed = taps(size_in, span.start, span.stop, span.high - span.low, shifted, kernel)
    return span if direct.same(boxed) else whole


def resize_crop(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int, int, int], resample: Resample = "bicubic"
) -> UInt8[np.ndarray, "h w 3"]:
    """The part `crop` = (top, left, height, width) of `image` resized to `size` = (height, width).

    Equal to `image.resize((width, height), resample)` and then cropping. Memory follows the crop and the source, not
    `size`, so a 2000 x 1 image on its way to 512000 x 256 is no danger.

    Raises:
        ValueError: the image is not RGB, `resample` is unknown, or the crop is empty or reaches outside `size`.
    """
    box = Box(*crop)
    _check(image, size, box, resample)
    if size == (image.height, image.width):
        return _pixels(image, box)
    if resample == "nearest":
        down = _nearest(image.height, size[0], box.top, box.height)
        across = _nearest(image.width, size[1], box.left, box.width)
        return np.ascontiguousarray(np.asarray(image)[down[:, None], across[None]])
    kernel = KERNELS[resample]
    rows = _span(image.height, size[0], box.top, box.height, kernel)
    columns = _span(image.width, size[1], box.left, box.width, kernel)
    part = (rows.high - rows.low, columns.high - columns.low)
    source_size = (image.height, image.width)
    if vertical_first(source_size, part) != vertical_first(source_size, size):
        part, rows, columns = size, _Span(0, size[0], 0, image.height), _Span(0, size[1], 0, image.width)
    if part[0] * part[1] <= max(FULL_TIMES_CROP * box.height * box.width, FULL_PIXELS):
        source = (columns.start, rows.start, columns.stop, rows.stop)
        resized = image.resize((part[1], part[0]), Image.Resampling[resample.upper()], box=source)
        return _pixels(resized, box._replace(top=box.top - rows.low, left=box.left - columns.low))
    return _integer_resize(image, size, box, kernel)


def vertical_first(source: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether Pillow resizes the columns before the rows; the two differ in the rounding between the passes.

    Since 13.0 when that saves work by its estimate, before only for strips. Measured on 20,000 sizes with each version.
    """
    fewer_rows, fewer_columns = source[0] - target[0], source[1] - target[1]
    if PILLOW_MAJOR >= 13:
        return fewer_rows > 0 and fewer_rows > 2 * fewer_columns
    return fewer_rows > 0 and source[0] > 100 * source[1]


def _check(image: Image.Image, size: tuple[int, int], box: Box, resample: str) -> None:
    if image.mode != "RGB":
        raise ValueError(f"the image has mode {image.mode}; resize_crop takes RGB (see dinokit.images.decode).")
    if resample not in RESAMPLES:
        raise ValueError(f"resample is {resample!r}; it must be one of {', '.join(RESAMPLES)}.")
    bottom, right = box.top + box.height, box.left + box.width
    inside = min(box.top, box.left) >= 0 and bottom <= size[0] and right <= size[1]
    if min(box.height, box.width) < 1 or not inside:
        raise ValueError(f"crop {tuple(box)} (top, left, height, width) must lie within size {size} and hold a pixel.")


def _pixels(image: Image.Image, box: Box) -> UInt8[np.ndarray, "h w 3"]:
    # Not `Image.crop`, which warns about large images.
    rows = np.asarray(image)[box.top : box.top + box.height, box.left : box.left + box.width]
    return np.ascontiguousarray(rows)


def _nearest(size_in: int, size_out: int, first: int, count: int) -> Int64[np.ndarray, "n"]:
    """Source indices of Pillow's nearest neighbour, which walks through the source by adding the scale each time."""
    step = size_in / size_out
    stop = first + count
    if stop > EXACT_STEPS:  # beyond what Pillow can make, so there is nothing to equal
        position = (np.arange(first, stop) + 0.5) * step
    else:
        position = np.cumsum(np.concatenate([[step * 0.5], np.full(stop - 1, step)]))[first:]
    return np.minimum(position.astype(np.int64), size_in - 1)


def _integer_resize(image: Image.Image, size: tuple[int, int], box: Box, kernel: Kernel) -> UInt8[np.ndarray, "h w 3"]:
    """Both passes in integers, for the crop only, rounded to 8 bits in between, in Pillow's order."""
    across = taps(image.width, 0, image.width, size[1], range(box.left, box.left + box.width), kernel)
    down = taps(image.height, 0, image.height, size[0], range(box.top, box.top + box.height), kernel)
    left, right = _reach(across, image.width)
    top, bottom = _reach(down, image.height)
    across, down = Taps(across.first - left, across.weights), Taps(down.first - top, down.weights)
    vertical = vertical_first((image.height, image.width), size)
    first, second = (down, across) if vertical else (across, down)
    # A line lies along the first pass: a row of the source, or a column if that pass is vertical.
    lines, length = (right - left, bottom - top) if vertical else (bottom - top, right - left)
    half = np.empty((lines, len(first.first), 3), np.uint8)
    step = max(1, CHUNK_PIXELS // max(length, half.shape[1]))
    for line in range(0, lines, step):
        end = min(line + step, lines)
        rows, columns = ((0, length), (line, end)) if vertical else ((line, end), (0, length))
        part = np.asarray(image.crop((left + columns[0], top + rows[0], left + columns[1], top + rows[1])))
        half[line:end] = _apply(part.swapaxes(0, 1) if vertical else part, first)
    turned = half.swapaxes(0, 1)
    out = np.empty((turned.shape[0], len(second.first), 3), np.uint8)
    step = max(1, CHUNK_PIXELS // max(lines, out.shape[1]))
    for line in range(0, len(turned), step):
        out[line : line + step] = _apply(turned[line : line + step], second)
    return out if vertical else np.ascontiguousarray(out.swapaxes(0, 1))


def _reach(axis: Taps, size_in: int) -> tuple[int, int]:
    return int(axis.first.min()), min(size_in, int(axis.first.max()) + axis.weights.shape[1])


def _apply(source: UInt8[np.ndarray, "rows n 3"], axis: Taps) -> UInt8[np.ndarray, "rows m 3"]:
    total = np.full((source.shape[0], len(axis.first), 3), 1 << (PRECISION_BITS - 1), np.int32)
    for tap in range(axis.weights.shape[1]):
        index = np.minimum(axis.first + tap, source.shape[1] - 1)  # past the end only where the weight is zero
        total += source[:, index].astype(np.int32) * axis.weights[:, tap].astype(np.int32)[None, :, None]
    pixels: UInt8[np.ndarray, "rows m 3"] = np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)
    return pixels
