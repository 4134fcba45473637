"""Hierarchical k-means and balanced sampling from it, for curating data without labels.

Promise: seeded and reproducible; samples hold exactly as many images as asked for, or all there are. Source: Vo et al. 2024,
"Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach" (arXiv 2405.15613), sections 3.2 and 3.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from dinokit.search.kmeans import Init, KMeans, Metric, assign, kmeans, plus_plus
from dinokit.search.vectors import BLOCK_ROWS, MEMORY, Chosen, Held, InMemory, Source, held

Leaf = Literal["random", "closest"]
Numbers = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Hierarchy:
    """Level 0 clusters the vectors, each further level the centres of the one before."""

    levels: tuple[KMeans, ...]

    def labels(self, level: int) -> Numbers:
        """The cluster of each vector on a level."""
        found = self.levels[0].labels
        for above in self.levels[1 : level + 1]:
            found = above.labels[found]
        return found


def hierarchical_kmeans(
    source: Source,
    sizes: Sequence[int],
    *,
    resampling_steps: int = 10,
    resampled: Sequence[int] | None = None,
    metric: Metric = "cosine",
    seed: int = 0,
    max_iter: int = 50,
    init: Init = plus_plus,
    block_rows: int = BLOCK_ROWS,
    memory: int = MEMORY,
) -> Hierarchy:
    """k-means of the vectors to `sizes[0]` clusters, of their centres to `sizes[1]`, and so on.

    On each level, `resampling_steps` times: only the `resampled[level]` vectors closest to each centre are clustered anew, which
    flattens the density, and all are assigned to the new centres. By default half the mean size of a cluster.

    Raises:
        ValueError: sizes that do not fall from level to level, or a setting out of its range.
        StorageError: no room for the scratch file.
    """
    sizes = list(sizes)
    if not sizes or any(b >= a for a, b in itertools.pairwise(sizes)) or sizes[-1] < 1:
        raise ValueError(f"clusters per level are {sizes}; they fall from level to level, the last at least 1.")
    if resampling_steps < 0 or (resampled is not None and (len(resampled) != len(sizes) or min(resampled) < 1)):
        raise ValueError(
            f"resampled is {resampled} and resampling_steps {resampling_steps}; one number a level, at least 1."
        )
    settings = {"metric": metric, "max_iter": max_iter, "init": init, "block_rows": block_rows}
    levels: list[KMeans] = []
    with held(source, unit=metric == "cosine", memory=memory) as vectors:
        inputs: Held = vectors
        for level, k in enumerate(sizes):
            closest = resampled[level] if resampled else max(1, round(len(inputs) / k / 2))
            found = kmeans(inputs, k, seed=_seed(seed, level, 0), **settings)  # type: ignore[arg-type]
            for step in range(1, resampling_steps + 1):
                kept = np.sort(np.concatenate(found.closest(closest)))
                if len(kept) < k:  # clusters without a vector, of fewer different vectors than clusters
                    break
                again = kmeans(Chosen(inputs, kept), k, seed=_seed(seed, level, step), **settings)  # type: ignore[arg-type]
                found = assign(inputs, again.centroids, metric=metric, block_rows=block_rows)
            levels.append(found)
            inputs = InMemory(found.centroids, unit=metric == "cosine")
    return Hierarchy(tuple(levels))


def _seed(seed: int, level: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, level, step]).generate_state(1)[0])


def water_fill(sizes: Numbers, target: int, rng: np.random.Generator) -> Numbers:
    """How many to take of each: as equal as `sizes` allow, `target` together, or all if there are fewer.

    The largest level m with sum min(m, size) <= target; what is left goes to larger ones, one each, at random.

    Raises:
        ValueError: a negative number.
    """
    sizes = np.asarray(sizes, np.int64)
    if target < 0 or (len(sizes) and sizes.min() < 0):
        raise ValueError(f"target is {target}; it and all sizes are at least 0.")
    if sizes.sum() <= target:
        return sizes.copy()
    ordered = np.sort(sizes)
    # filled[i]: what a level of ordered[i] takes
    filled = np.cumsum(ordered) + ordered * np.arange(len(ordered) - 1, -1, -1)
    place = int(np.searchsorted(filled, target, side="right"))
    below = int(filled[place - 1]) if place else 0
    level = (int(ordered[place - 1]) if place else 0) + (target - below) // (len(ordered) - place)
    taken: Numbers = np.minimum(sizes, level)
    more = np.flatnonzero(sizes > level)
    taken[np.sort(rng.choice(more, target - int(taken.sum()), replace=False))] += 1
    return taken


def sample_balanced(hierarchy: Hierarchy, target: int, *, leaf: Leaf = "random", seed: int = 0) -> Numbers:
    """`target` vectors, ascending: shared among the clusters of the top level, each share among its clusters below, and so on down.

    In a cluster of level 0 vectors are chosen at random or those closest to the centre.

    Raises:
        ValueError: a negative target, or an unknown rule.
    """
    if leaf not in ("random", "closest"):
        raise ValueError(f"leaf is {leaf!r}; it must be random or closest.")
    rng = np.random.default_rng(seed)
    levels = hierarchy.levels
    counts = [levels[0].sizes]
    for above in levels[1:]:
        counts.append(np.bincount(above.labels, weights=counts[-1], minlength=len(above.centroids)).astype(np.int64))
    shares = water_fill(counts[-1], target, rng)
    for level in range(len(levels) - 1, 0, -1):
        below = np.zeros_like(counts[level - 1])
        for members, share in zip(levels[level].closest(len(below)), shares.tolist(), strict=True):
            below[members] = water_fill(counts[level - 1][members], share, rng)
        shares = below
    chosen = []
    for members, share in zip(levels[0].closest(len(levels[0].labels)), shares.tolist(), strict=True):
        chosen.append(rng.choice(np.sort(members), share, replace=False) if leaf == "random" else members[:share])
    numbers: Numbers = np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)])).astype(np.int64)
    return numbers
