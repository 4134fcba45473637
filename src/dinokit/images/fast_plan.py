"""Which pixels of a stored image a transform's result comes from, whatever way up they lie and at whatever scale.

The geometry is that of `ImageTransform`, to the pixel; only the small result is turned upright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dinokit.images.fast_resample import VECTORISED, Axis, resample_crop
from dinokit.images.geometry import Exact, centre
from dinokit.images.resize import Box, vertical_first
from dinokit.images.transform import MAX_ASPECT_WITHOUT_CROP, ImageTransform

SCALES = (8, 4, 2)  # divisors that the inverse DCT of libjpeg-turbo is fast at
# How many pixels of an image decoded at a smaller scale are left for an output pixel, at least.
LEFT_TO_SHRINK = 5
# Pixels before the crop that may be made in vain, in units of the crop: beyond (strips), the exact way is the fast one.
MOST_IN_VAIN = 8
# EXIF orientation: swap rows and columns, then turn the rows upside down, then the columns.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class Plan:
    """Where the pixels of the result come from: `box` of the image, upright, resized to `target`, then padded to `crop`."""

    transform: ImageTransform
    size: tuple[int, int]
    target: tuple[int, int]
    box: Box
    crop: tuple[int, int]
    before: tuple[int, int]

    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns at full size."""
        return (
            Axis(self.size[0], self.size[0], self.target[0], self.box.top, self.box.height),
            Axis(self.size[1], self.size[1], self.target[1], self.box.left, self.box.width),
        )

    def columns_first(self) -> bool:
        """Pillow's order."""
        return not vertical_first(self.size, self.target)

    def sees(self) -> int:
        """Source pixels that the crop depends on."""
        (top, bottom), (left, right) = (axis.reach(self.transform.resample) for axis in self.axes())
        return (bottom - top) * (right - left)

    def divisor(self) -> int:
        """The largest by which a decoder may shrink and leave enough to average."""
        shrink = min(axis.scale for axis in self.axes())
        return next((divisor for divisor in SCALES if shrink >= divisor * LEFT_TO_SHRINK), 1)

    def last_row(self, divisor: int = 1, orientation: int = 1) -> int:
        """How many rows of an image that is stored in an `orientation` at 1 / `divisor` of its size `run` needs, from the first."""
        size, target, box = self._stored(orientation)
        axis = Axis(-(-size[0] // divisor), size[0] / divisor, target[0], box.top, box.height)
        return axis.reach(self.transform.resample)[1]

    def run(
        self, stored: UInt8[np.ndarray, "h w 3"], divisor: int = 1, orientation: int = 1
    ) -> UInt8[Tensor, "3 h2 w2"]:
        """The result, of an image that is stored in an `orientation` at 1 / `divisor` of its size, or of its first rows.

        Only the small result is turned: what is resized is the box as it lies in the stored image.
        """
        size, target, box = self._stored(orientation)
        columns_first = self.columns_first() != _TURNS[orientation][0]
        extent = (size[0] / divisor, size[1] / divisor)
        made = resample_crop(stored, extent, target, box, self.transform.resample, columns_first)
        upright = turned(made.numpy(), orientation)
        out = np.zeros((3, *self.crop), np.uint8)
        rows, columns = self.before
        out[:, rows : rows + self.box.height, columns : columns + self.box.width] = upright.transpose(2, 0, 1)
        return torch.from_numpy(out)

    def _stored(self, orientation: int) -> tuple[tuple[int, int], tuple[int, int], Box]:
        """Size, target and box as they lie in the stored image."""
        swap, rows_turned, columns_turned = _TURNS[orientation]
        top, left, height, width = self.box
        top = self.target[0] - top - height if rows_turned else top
        left = self.target[1] - left - width if columns_turned else left
        if not swap:
            return self.size, self.target, Box(top, left, height, width)
        return self.size[::-1], self.target[::-1], Box(left, top, width, height)


def plan_of(transform: ImageTransform, height: int, width: int) -> Plan | None:
    """The plan for an upright size; None where the exact way is no slower (nothing to resize, strips) or the only one."""
    if transform.resize is None or transform.resample not in VECTORISED:
        return None
    target = transform.resize.target(height, width)
    if transform.crop is None:
        short, long = sorted((height, width))
        if not isinstance(transform.resize, Exact) and long > MAX_ASPECT_WITHOUT_CROP * short:
            return None
        plan = Plan(transform, (height, width), target, Box(0, 0, *target), target, (0, 0))
    else:
        rows, columns = (
            centre(length, crop, transform.crop_rounding) for length, crop in zip(target, transform.crop, strict=True)
        )
        box = Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        plan = Plan(transform, (height, width), target, box, transform.crop, (rows.before, columns.before))
    first = plan.axes()[1 if plan.columns_first() else 0]
    strip = first.start > MOST_IN_VAIN * first.count
    return None if strip or target == (height, width) else plan


def turned(stored: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A view of `stored` the right way up."""
    swap, rows, columns = _TURNS[orientation]
    upright = stored.swapaxes(0, 1) if swap else stored
    return upright[:: -1 if rows else 1, :: -1 if columns else 1]


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """(Height, width) of what is stored as `height` x `width`, once it is the right way up."""
    return (width, height) if _TURNS[orientation][0] else (height, width)
