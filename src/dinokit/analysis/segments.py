"""Patches in groups: k-means of tokens, the same groups with the same names every time.

Promise: the same input gives the same labels; label 0 is the largest group.
Source: Lloyd 1982; seeding: Arthur and Vassilvitskii 2007 (k-means++). Segments from eigenvectors are in `spectral`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dinokit.analysis.discovery import checked_grid

RESTARTS = 4
MAX_ITERATIONS = 100
LEFT_OUT = -1


class Clusters(NamedTuple):
    """`labels` in 0 to k - 1, by falling size (equals: by first member); `inertia` is the sum of squared distances."""

    labels: Int64[Tensor, " n"]
    centres: Float[Tensor, "k d"]
    inertia: float


def kmeans(points: Float[Tensor, "n d"], k: int, *, seed: int = 0, restarts: int = RESTARTS) -> Clusters:
    """k-means, the best of `restarts` runs from k-means++ seeds.

    `seed` makes the seeds; the generator of PyTorch is not touched. Fewer groups than k come back where points coincide.

    Raises:
        ValueError: k out of 1 to n, or points that are not finite.
    """
    if not 1 <= k <= len(points):
        raise ValueError(f"k is {k} for {len(points)} points; it must lie in 1 to that number.")
    if not torch.isfinite(points).all():
        raise ValueError("points hold NaN or infinite values.")
    points = points.float() if points.dtype in (torch.float16, torch.bfloat16) else points
    generator = torch.Generator().manual_seed(seed)
    runs = [_lloyd(points, _spread(points, k, generator)) for _ in range(restarts)]
    best = min(runs, key=lambda run: run.inertia)
    return _renamed(best)


def kmeans_segments(
    features: Float[Tensor, "n d"],
    hw: tuple[int, int],
    k: int,
    *,
    normalize: bool = True,
    token_mask: Bool[Tensor, " n"] | None = None,
    seed: int = 0,
) -> Int64[Tensor, "gh gw"]:
    """Segment of each patch, 0 the largest; -1 where `token_mask` left the token out. `normalize` compares directions only.

    Raises:
        ValueError: sizes that don't fit, or k out of 1 to the number of tokens.
    """
    kept = checked_grid(features, hw, token_mask).to(features.device)
    chosen = F.normalize(features, dim=-1)[kept] if normalize else features[kept]
    labels = torch.full(kept.shape, LEFT_OUT, dtype=torch.int64, device=features.device)
    labels[kept] = kmeans(chosen, k, seed=seed).labels
    return labels.view(hw)


def _squared(points: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()


def _spread(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is a point, likelier the farther it lies from those before."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = _squared(points, points[chosen])[:, 0]
    while len(chosen) < k and bool(nearest.max() > 0):
        reach = nearest.cpu().double().cumsum(0)
        place = torch.rand(1, generator=generator, dtype=torch.float64) * reach[-1]
        index = min(int(torch.searchsorted(reach, place)), len(points) - 1)
        if nearest[index] == 0:  # rounding led to a point that is a centre already
            index = int(nearest.argmax())
        chosen.append(index)
        nearest = torch.minimum(nearest, _squared(points, points[[index]])[:, 0])
    return points[chosen]


def _lloyd(points: Tensor, centres: Tensor) -> Clusters:
    labels = _squared(points, centres).argmin(dim=1)
    for _ in range(MAX_ITERATIONS):
        members = F.one_hot(labels, len(centres)).to(points.dtype)
        counts = members.sum(dim=0)
        # An empty group keeps its centre.
        centres = torch.where(counts[:, None] > 0, members.T @ points / counts.clamp_min(1)[:, None], centres)
        before, labels = labels, _squared(points, centres).argmin(dim=1)
        if torch.equal(before, labels):
            break
    inertia = float(_squared(points, centres).min(dim=1).values.cpu().double().sum())
    return Clusters(labels, centres, inertia)


def _renamed(found: Clusters) -> Clusters:
    present, counts = found.labels.unique(return_counts=True)
    firsts = [int((found.labels == label).nonzero()[0, 0]) for label in present]
    order = sorted(range(len(present)), key=lambda i: (-int(counts[i]), firsts[i]))
    names = torch.full((len(found.centres),), LEFT_OUT, dtype=torch.int64, device=found.labels.device)
    for new, old in enumerate(order):
        names[present[old]] = new
    return Clusters(names[found.labels], found.centres[present[order]], found.inertia)
