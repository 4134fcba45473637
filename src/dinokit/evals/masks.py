"""J and F of the DAVIS benchmark: how well masks of a video agree, by area and by contour.

Source: Perazzi et al. 2016, section 5; Pont-Tuset et al. 2017 (several objects). Contours count as met within 0.8 % of the diagonal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

CONTOUR_REACH = 0.008

Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class VideoScore:
    """Means over the frames that were judged, one number an object."""

    region: tuple[float, ...]
    contour: tuple[float, ...]


def region_similarity(predicted: Mask, true: Mask, void: Mask | None = None) -> float:
    """J: intersection over union; 1 where both are empty. Pixels of `void` don't count."""
    kept = np.True_ if void is None else ~void
    union = int(((predicted | true) & kept).sum())
    return int((predicted & true & kept).sum()) / union if union else 1.0


def contour_accuracy(predicted: Mask, true: Mask, void: Mask | None = None) -> float:
    """F: harmonic mean of how much of the predicted contour lies near the true one, and the reverse."""
    if void is not None:
        predicted, true = predicted & ~void, true & ~void
    reach = math.ceil(CONTOUR_REACH * math.hypot(*true.shape))
    ours, theirs = contour(predicted), contour(true)
    num_ours, num_theirs = int(ours.sum()), int(theirs.sum())
    if not num_ours and not num_theirs:
        return 1.0
    if not num_ours or not num_theirs:
        return 0.0
    precision = int((ours & dilate(theirs, reach)).sum()) / num_ours
    recall = int((theirs & dilate(ours, reach)).sum()) / num_theirs
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or below to the right."""
    edge = np.zeros(mask.shape, bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def dilate(mask: Mask, radius: int) -> Mask:
    """Pixels at most `radius` from one of the mask."""
    height, width = mask.shape
    out = np.zeros(mask.shape, bool)
    # each row of the disc is an interval, and whether an interval holds a pixel of the mask is a difference of running sums
    sums = np.concatenate([np.zeros((height, 1), np.int64), mask.cumsum(axis=1)], axis=1)
    columns = np.arange(width)
    for down in range(-radius, radius + 1):
        half = math.isqrt(radius * radius - down * down)
        first, last = np.maximum(columns - half, 0), np.minimum(columns + half + 1, width)
        row = sums[:, last] > sums[:, first]
        start, stop = max(0, down), min(height, height + down)
        if start < stop:
            out[start:stop] |= row[start - down : stop - down]
    return out


def judge_video(
    predicted: Int[np.ndarray, "t h w"], true: Int[np.ndarray, "t h w"], num_objects: int, ignored: int = 255
) -> VideoScore:
    """J and F of objects 1 to `num_objects` (0 is background); the first frame was given and the last is left out, as in DAVIS.

    Raises:
        ValueError: shapes that differ, or fewer than three frames.
    """
    if predicted.shape != true.shape or len(true) < 3:
        raise ValueError(
            f"predicted masks are {predicted.shape}, true ones {true.shape}; they must agree, and of the frames neither the first "
            f"nor the last is judged, so three are needed."
        )
    region, edge = [], []
    for number in range(1, num_objects + 1):
        judged = [
            (predicted[t] == number, true[t] == number, void if (void := true[t] == ignored).any() else None)
            for t in range(1, len(true) - 1)
        ]
        region.append(float(np.mean([region_similarity(*frame) for frame in judged])))
        edge.append(float(np.mean([contour_accuracy(*frame) for frame in judged])))
    return VideoScore(region=tuple(region), contour=tuple(edge))
