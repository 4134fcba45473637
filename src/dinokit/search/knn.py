"""The k nearest of each query, exact, block by block: a matrix product, a threshold, and few candidates computed again in float64.

Promise: the result depends neither on the size of blocks nor on the number of threads; among equals the smaller number is first.
Float32 products only choose candidates, with a margin for their error; what is returned was computed in float64 and rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from dinokit.search.vectors import BLOCK_ROWS, UNIT_ERROR, Source, as_array, as_vectors, lengths, tensor_of

Metric = Literal["cosine", "dot", "l2"]
METRICS: tuple[Metric, ...] = get_args(Metric)
TILE = 1 << 23  # scores in memory at a time: 32 MB
RESCORED = 8_192  # candidates computed again at a time


@dataclass(frozen=True)
class Neighbours:
    """Nearest first. `numbers` of the collection, -1 where it has fewer than k; `scores` are cosine, dot product or L2 distance."""

    numbers: Int64[np.ndarray, "q k"]
    scores: Float32[np.ndarray, "q k"]


def nearest(
    queries: Source,
    source: Source,
    k: int,
    *,
    metric: Metric = "cosine",
    exclude: Int64[np.ndarray, " q"] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Neighbours:
    """The `k` vectors of `source` nearest to each of `queries`, in one pass over `source`.

    `queries` are an array (q, d) in memory. `exclude` numbers one vector for each query that does not count, such as itself. In
    memory: three blocks of `block_rows` vectors and 32 MB of scores. More than max(64, 4 k) vectors of a block that float32 can't
    tell from the k-th are taken by number.

    Raises:
        ValueError: vectors of another length, k below 1, or an unknown metric.
    """
    vectors = as_vectors(source)
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}.")
    if k < 1 or block_rows < 1:
        raise ValueError(f"k is {k} and block_rows {block_rows}; both are at least 1.")
    best = _Best(as_array(queries), k, metric, vectors.dim, vectors.unit, exclude)
    tile = max(TILE // block_rows, 1)
    for start, block in vectors.blocks(block_rows):
        prepared = best.prepare(block)
        for first in range(0, len(best.queries), tile):
            best.offer(slice(first, first + tile), start, prepared)
    return best.result()


@dataclass(frozen=True)
class _Block:
    """Vectors as they are, as they are multiplied, what is taken off the products, the largest length of a vector.

    `slack` is what products are off by because lengths that count as 1 are only nearly so.
    """

    vectors: Float32[np.ndarray, "n d"]
    multiplied: torch.Tensor
    offset: Float32[np.ndarray, " n"] | None = None
    largest: float = 1.0
    slack: float = 0.0


class _Best:
    """The best k so far, for each query."""

    def __init__(
        self,
        queries: Float32[np.ndarray, "q d"],
        k: int,
        metric: Metric,
        dim: int,
        unit: bool,
        exclude: Int64[np.ndarray, " q"] | None,
    ) -> None:
        if queries.shape[1] != dim:
            raise ValueError(f"queries have {queries.shape[1]} numbers each, the collection's vectors {dim}.")
        exact = queries.astype(np.float64)
        self.norms: Float64[np.ndarray, " q"] = np.sqrt(np.einsum("qd,qd->q", exact, exact))
        if metric == "cosine":
            exact /= np.maximum(self.norms, np.finfo(np.float64).tiny)[:, None]
            self.norms = np.ones(len(exact))
        self.queries: Float64[np.ndarray, "q d"] = exact
        self.multiplied = torch.from_numpy(exact.astype(np.float32))
        self.k, self.metric, self.unit, self.exclude = k, metric, unit, exclude
        self.cap = max(64, 4 * k)
        self.scores = np.full((len(queries), k), -np.inf, np.float32)
        self.numbers = np.full((len(queries), k), -1, np.int64)

    def prepare(self, block: Float32[np.ndarray, "n d"]) -> _Block:
        """What every query needs of a block, once."""
        if self.unit:
            offset = np.full(len(block), 0.5, np.float32) if self.metric == "l2" else None
            return _Block(block, tensor_of(block), offset, 1 + UNIT_ERROR, 2 * UNIT_ERROR)
        norms = lengths(block)
        if self.metric == "cosine":
            scaled = block / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
            return _Block(block, torch.from_numpy(scaled))
        offset = norms * norms / 2 if self.metric == "l2" else None
        return _Block(block, tensor_of(block), offset, float(norms.max(initial=0)))

    def offer(self, which: slice, start: int, block: _Block) -> None:
        """Let the vectors of a block compete for the places of some queries."""
        products = (self.multiplied[which] @ block.multiplied.T).numpy()
        if block.offset is not None:
            products -= block.offset
        rows, columns = self._candidates(products, which, block)
        numbers = start + columns
        rows = rows + which.start
        if self.exclude is not None:
            kept = numbers != self.exclude[rows]
            rows, columns, numbers = rows[kept], columns[kept], numbers[kept]
        if len(rows):
            self._merge(rows, numbers, self._exact(rows, columns, block.vectors))

    def _candidates(
        self, products: Float32[np.ndarray, "q n"], which: slice, block: _Block
    ) -> tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
        """Rows and columns that may belong to the best k: at most `cap` a row."""
        norms = self.norms[which]
        # the bound on a float32 sum of products, twice for what its order may do
        rounding = 2 * (self.queries.shape[1] + 8) * 2.0**-24
        spread = norms * block.largest + (block.largest**2 / 2 if self.metric == "l2" else 0.0)
        margin = (rounding + block.slack) * spread
        worst = self.scores[which, -1].astype(np.float64)
        bound = (worst + norms**2) / 2 if self.metric == "l2" else worst
        # float32 holds `worst` rounded, so that the margin grows with it
        bound = bound - margin - np.abs(np.where(np.isfinite(worst), worst, 0)) * 2.0**-22
        places = self.k + (self.exclude is not None)
        fresh = np.flatnonzero(np.isneginf(bound))
        bound[fresh] = at_least(products[fresh], places) - 2 * margin[fresh]
        rows, columns = np.divmod(np.flatnonzero(products >= bound[:, None].astype(np.float32)), products.shape[1])
        many = np.flatnonzero(np.bincount(rows, minlength=len(products)) > self.cap)
        if not len(many):
            return rows, columns
        kept = ~np.isin(rows, many)
        parts = [(rows[kept], columns[kept])]
        for row in many:
            chosen = self._few(products[row], places, float(bound[row]), float(margin[row]))
            parts.append((np.full(len(chosen), row), chosen))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _few(
        self, products: Float32[np.ndarray, " n"], places: int, bound: float, margin: float
    ) -> Int64[np.ndarray, " c"]:
        """Of one row, what may be among the best k; what can't be told from the k-th, by number."""
        if places >= len(products):
            return np.arange(len(products))
        kth = float(np.partition(products, len(products) - places)[len(products) - places])
        sure = np.flatnonzero(products > kth + 2 * margin)
        rest = np.flatnonzero((products <= kth + 2 * margin) & (products >= max(kth - 2 * margin, bound)))
        return np.concatenate([sure, rest[: self.cap]])

    def _exact(
        self, rows: Int64[np.ndarray, " c"], columns: Int64[np.ndarray, " c"], block: Float32[np.ndarray, "n d"]
    ) -> Float32[np.ndarray, " c"]:
        """The scores, larger is nearer, in float64 and rounded."""
        found = np.empty(len(rows), np.float32)
        for first in range(0, len(rows), RESCORED):
            part = slice(first, first + RESCORED)
            queries, vectors = self.queries[rows[part]], block[columns[part]].astype(np.float64)
            if self.metric == "l2":
                queries -= vectors
                found[part] = -np.einsum("cd,cd->c", queries, queries)
                continue
            products = np.einsum("cd,cd->c", queries, vectors)
            if self.metric == "cosine":
                norms = np.sqrt(np.einsum("cd,cd->c", vectors, vectors))
                products /= np.maximum(norms, np.finfo(np.float64).tiny)
            found[part] = products
        return found

    def _merge(
        self, rows: Int64[np.ndarray, " c"], numbers: Int64[np.ndarray, " c"], scores: Float32[np.ndarray, " c"]
    ) -> None:
        better = scores > self.scores[rows, -1]
        rows, numbers, scores = rows[better], numbers[better], scores[better]
        touched = np.unique(rows)
        rows = np.concatenate([np.repeat(touched, self.k), rows])
        numbers = np.concatenate([self.numbers[touched].ravel(), numbers])
        scores = np.concatenate([self.scores[touched].ravel(), scores])
        order = np.lexsort((numbers, -scores, rows))
        # empty places have number -1 and score -inf: last of their row
        firsts = np.searchsorted(rows[order], touched)
        chosen = order[firsts[:, None] + np.arange(self.k)]
        self.scores[touched], self.numbers[touched] = scores[chosen], numbers[chosen]

    def result(self) -> Neighbours:
        """Distances instead of their negative squares."""
        if self.metric == "l2":
            with np.errstate(invalid="ignore"):
                return Neighbours(self.numbers, np.sqrt(-self.scores))
        return Neighbours(self.numbers, self.scores)


def at_least(products: Float32[np.ndarray, "q n"], places: int) -> Float32[np.ndarray, " q"]:
    """What the number at `places` in each row, from the largest, is at least: cheaper than the number itself.

    The largest of each of some groups are as many different numbers, so the one at `places` among them is a bound.
    """
    groups = 16 * places
    length = products.shape[1] // groups
    if length < 2:
        return np.full(len(products), -np.inf, np.float32)
    largest = products[:, : groups * length].reshape(len(products), length, groups).max(axis=1)
    bounds: Float32[np.ndarray, " q"] = np.partition(largest, groups - places, axis=1)[:, groups - places]
    return bounds
