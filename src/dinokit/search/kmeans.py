"""k-means over vectors on disk: k-means++ and Lloyd's iterations, block by block.

Promise: seeded and reproducible; sums are float64; no cluster stays empty while a vector is away from its centre: it takes the farthest
one. Source: Arthur and Vassilvitskii 2007 (k-means++, with several candidates a step); Lloyd 1982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32, Float64, Int64

from dinokit.search.vectors import BLOCK_ROWS, MEMORY, Held, Source, held, lengths, tensor_of, to_unit

Metric = Literal["cosine", "l2"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Init = Callable[[Held, int, np.random.Generator], Float32[np.ndarray, "k d"]]
TILE = 1 << 23  # products in memory at a time: 32 MB
SEEDED_FROM = 65_536  # k-means++ looks at a sample of so many vectors, or 32 k if that is more


@dataclass(frozen=True)
class KMeans:
    """Clusters by the distance to their centres, which for cosine have length 1.

    `distances` are those of each vector to its centre: L2, or 1 - cosine. `inertia` is what was minimised: the sum of squared L2
    distances, or of 1 - cosine.
    """

    centroids: Float32[np.ndarray, "k d"]
    labels: Int64[np.ndarray, " n"]
    distances: Float32[np.ndarray, " n"]
    inertia: float
    iterations: int

    @property
    def sizes(self) -> Int64[np.ndarray, " k"]:
        """Vectors in each cluster."""
        return np.bincount(self.labels, minlength=len(self.centroids))

    def closest(self, count: int) -> list[Int64[np.ndarray, " c"]]:
        """For each cluster its `count` vectors nearest to the centre, nearest first; equals by number. The first is the medoid."""
        order = np.lexsort((np.arange(len(self.labels)), self.distances, self.labels))
        ends = np.cumsum(self.sizes)
        return [order[end - size : end][:count] for end, size in zip(ends, self.sizes, strict=True)]


def plus_plus(vectors: Held, k: int, rng: np.random.Generator) -> Float32[np.ndarray, "k d"]:
    """k-means++: vectors chosen with probability in proportion to the squared distance from those chosen before."""
    count, sample = len(vectors), max(SEEDED_FROM, 32 * k)
    numbers = np.sort(rng.choice(count, sample, replace=False)) if count > sample else np.arange(count)
    points = vectors.take(numbers)
    squares = lengths(points).astype(np.float64) ** 2
    chosen = np.empty((k, vectors.dim), np.float32)
    chosen[0] = points[rng.integers(len(points))]
    nearest = _squared(points, squares, chosen[:1])[:, 0]
    candidates = 2 + int(np.log(k))
    for i in range(1, k):
        total = np.cumsum(nearest)
        if not total[-1] > 0:  # fewer different vectors than clusters
            chosen[i:] = points[rng.integers(len(points), size=k - i)]
            break
        tried = np.searchsorted(total, rng.random(candidates) * total[-1], side="right").clip(max=len(points) - 1)
        distances = np.minimum(nearest[:, None], _squared(points, squares, points[tried]))
        best = int(distances.sum(axis=0).argmin())
        chosen[i], nearest = points[tried[best]], distances[:, best]
    return chosen


def _squared(
    points: Float32[np.ndarray, "n d"], squares: Float64[np.ndarray, " n"], centres: Float32[np.ndarray, "k d"]
) -> Float64[np.ndarray, "n k"]:
    products = (tensor_of(points) @ tensor_of(np.ascontiguousarray(centres)).T).numpy().astype(np.float64)
    found: Float64[np.ndarray, "n k"] = squares[:, None] - 2 * products + lengths(centres).astype(np.float64) ** 2
    np.maximum(found, 0, out=found)
    return found


def kmeans(
    source: Source,
    k: int,
    *,
    metric: Metric = "cosine",
    seed: int = 0,
    n_init: int = 1,
    max_iter: int = 50,
    tol: float = 1e-4,
    init: Init | Float32[np.ndarray, "k d"] = plus_plus,
    block_rows: int = BLOCK_ROWS,
    memory: int = MEMORY,
) -> KMeans:
    """The best of `n_init` runs.

    A run ends when no vector changes its cluster, when centres move by less than `tol` times the mean variance of a number, or after
    `max_iter` iterations. `init` makes the first centres, or are they. Vectors beyond `memory` bytes lie in a scratch file.

    Raises:
        ValueError: more clusters than vectors, or a setting out of its range.
        StorageError: no room for the scratch file.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}.")
    with held(source, unit=metric == "cosine", memory=memory) as vectors:
        if not 1 <= k <= len(vectors) or n_init < 1 or max_iter < 1:
            raise ValueError(
                f"{k} clusters of {len(vectors)} vectors, {n_init} runs of {max_iter} iterations: each is at least 1, clusters at "
                f"most as many as vectors."
            )
        best: KMeans | None = None
        for run in range(n_init):
            first = init(vectors, k, np.random.default_rng([seed, run])) if callable(init) else init
            if first.shape != (k, vectors.dim):
                raise ValueError(f"the first centres have shape {first.shape}; expected {(k, vectors.dim)}.")
            found = _lloyd(vectors, first, metric, max_iter, tol, block_rows)
            if best is None or found.inertia < best.inertia:
                best = found
    assert best is not None
    return best


def assign(
    source: Source, centroids: Float32[np.ndarray, "k d"], *, metric: Metric = "cosine", block_rows: int = BLOCK_ROWS
) -> KMeans:
    """Vectors with the nearest of given centres; equals by number of the centre. One pass."""
    with held(source, unit=metric == "cosine") as vectors:
        labels = np.concatenate([part for part, _, _ in _passes(vectors, centroids, block_rows)])
        distances = _distances(vectors, centroids, labels, metric, block_rows)
    inertia = float(np.sum(distances.astype(np.float64) ** (2 if metric == "l2" else 1)))
    return KMeans(centroids, labels, distances, inertia, 0)


def _lloyd(
    vectors: Held, centroids: Float32[np.ndarray, "k d"], metric: Metric, max_iter: int, tol: float, block_rows: int
) -> KMeans:
    centroids = _finished(centroids.astype(np.float64), metric)
    labels = np.full(len(vectors), -1, np.int64)
    limit = tol * _variance(vectors, block_rows) if tol else 0.0
    iterations = 0
    for iterations in range(1, max_iter + 1):  # noqa: B007 - told afterwards
        before, old = labels, centroids
        labels = np.empty(len(vectors), np.int64)
        away = np.empty(len(vectors), np.float32)
        sums, counts = np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64)
        start = 0
        for found, squared, block in _passes(vectors, centroids, block_rows):
            part = slice(start, start := start + len(found))
            labels[part], away[part] = found, squared
            _add(sums, counts, block, found)
        if np.array_equal(labels, before):
            break
        _fill_empty(sums, counts, vectors, labels, away)
        used = counts > 0
        means = old.astype(np.float64)
        means[used] = sums[used] / counts[used, None]
        centroids = _finished(means, metric)
        if np.sum((centroids.astype(np.float64) - old) ** 2) <= limit:
            break
    final = assign(vectors, centroids, metric=metric, block_rows=block_rows)
    return KMeans(final.centroids, final.labels, final.distances, final.inertia, iterations)


def _passes(vectors: Held, centroids: Float32[np.ndarray, "k d"], block_rows: int) -> Iterator[tuple[np.ndarray, ...]]:
    """For each block: the nearest centre, the squared distance to it, the vectors."""
    rows = min(block_rows, max(TILE // len(centroids), 256))
    multiplied = tensor_of(np.ascontiguousarray(centroids.T))
    offset = lengths(centroids) ** 2 / 2
    for _, block in vectors.blocks(rows):
        products = (tensor_of(block) @ multiplied).numpy()
        products -= offset
        labels = products.argmax(axis=1)
        best = np.take_along_axis(products, labels[:, None], axis=1)[:, 0]
        yield labels, lengths(block) ** 2 - 2 * best, block


def _add(
    sums: Float64[np.ndarray, "k d"],
    counts: Int64[np.ndarray, " k"],
    block: Float32[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
) -> None:
    """Add each vector to its cluster's sum."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    sums[ordered[starts]] += np.add.reduceat(block[order].astype(np.float64), starts, axis=0)
    counts += np.bincount(labels, minlength=len(counts))


def _fill_empty(
    sums: Float64[np.ndarray, "k d"],
    counts: Int64[np.ndarray, " k"],
    vectors: Held,
    labels: Int64[np.ndarray, " n"],
    away: Float32[np.ndarray, " n"],
) -> None:
    """Each empty cluster takes one of the vectors farthest from their centres."""
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return
    far = np.lexsort((np.arange(len(away)), -away))[: len(empty)]
    for cluster, number in zip(empty.tolist(), far.tolist(), strict=False):
        if away[number] <= 0 or counts[labels[number]] <= 1:
            continue
        vector = vectors.take(np.array([number]))[0].astype(np.float64)
        sums[labels[number]] -= vector
        counts[labels[number]] -= 1
        sums[cluster], counts[cluster] = vector, 1


def _finished(centroids: Float64[np.ndarray, "k d"], metric: Metric) -> Float32[np.ndarray, "k d"]:
    found: Float32[np.ndarray, "k d"] = centroids.astype(np.float32)
    return to_unit(found) if metric == "cosine" else found


def _variance(vectors: Held, block_rows: int) -> float:
    """Mean over the dimensions."""
    total, squares = np.zeros(vectors.dim), np.zeros(vectors.dim)
    for _, block in vectors.blocks(block_rows):
        total += block.sum(axis=0, dtype=np.float64)
        squares += np.einsum("nd,nd->d", block, block, dtype=np.float64)
    return float(np.mean(squares / len(vectors) - (total / len(vectors)) ** 2))


def _distances(
    vectors: Held,
    centroids: Float32[np.ndarray, "k d"],
    labels: Int64[np.ndarray, " n"],
    metric: Metric,
    block_rows: int,
) -> Float32[np.ndarray, " n"]:
    found = np.empty(len(vectors), np.float32)
    for start, block in vectors.blocks(min(block_rows, 4_096)):
        centres = centroids[labels[start : start + len(block)]].astype(np.float64)
        if metric == "l2":
            centres -= block
            found[start : start + len(block)] = np.sqrt(np.einsum("nd,nd->n", centres, centres))
        else:
            # half the squared distance of unit vectors: no cancellation near 0, as 1 - cosine has
            centres -= block
            found[start : start + len(block)] = np.einsum("nd,nd->n", centres, centres) / 2
    return found
