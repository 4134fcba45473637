"""Connected parts of a mask on the patch grid, and the boxes around them, in patches and in pixels.

Promise: boxes are half-open, so width = right - left; pixel boxes never leave the image, padding or not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class Box(NamedTuple):
    """(Left, top, right, bottom), right and bottom not included: the order of VOC, in patches or pixels."""

    left: int
    top: int
    right: int
    bottom: int


def label_components(mask: Bool[Tensor, "gh gw"]) -> Int64[Tensor, "gh gw"]:
    """Number of the 4-connected component that each cell belongs to: 1, 2, ... in reading order, 0 outside of the mask."""
    inside = mask.detach().cpu().numpy()
    labels = np.zeros(inside.shape, dtype=np.int64)
    count = 0
    for start in zip(*np.nonzero(inside), strict=True):
        if labels[start]:
            continue
        count += 1
        labels[start] = count
        waiting = [start]
        while waiting:
            row, column = waiting.pop()
            for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if (
                    0 <= cell[0] < inside.shape[0]
                    and 0 <= cell[1] < inside.shape[1]
                    and inside[cell]
                    and not labels[cell]
                ):
                    labels[cell] = count
                    waiting.append(cell)
    return torch.from_numpy(labels)


def component_at(mask: Bool[Tensor, "gh gw"], cell: int) -> Bool[Tensor, "gh gw"]:
    """The component of cell number `cell` (row by row); that cell alone if it lies outside of the mask."""
    labels = label_components(mask)
    label = int(labels.flatten()[cell])
    if label:
        return labels == label
    alone = torch.zeros(mask.numel(), dtype=torch.bool)
    alone[cell] = True
    return alone.view(mask.shape)


def largest_component(mask: Bool[Tensor, "gh gw"]) -> Bool[Tensor, "gh gw"]:
    """The component with most cells, the first of equals; empty for an empty mask."""
    labels = label_components(mask)
    sizes = torch.bincount(labels.flatten())[1:]
    return labels == (int(sizes.argmax()) + 1 if len(sizes) else -1)


def box_of(mask: Bool[Tensor, "gh gw"]) -> Box:
    """The smallest box around a mask, in its cells.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = mask.nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError("an empty mask has no box.")
    return Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)


def pixel_box(box: Box, patch_size: int, image_size: tuple[int, int]) -> Box:
    """A box of patches in pixels, cut at `image_size` = (height, width), the size before padding."""
    height, width = image_size
    return Box(
        min(box.left * patch_size, width),
        min(box.top * patch_size, height),
        min(box.right * patch_size, width),
        min(box.bottom * patch_size, height),
    )
