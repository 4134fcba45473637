"""All pairs of vectors above a cosine, tile by tile, and what hangs together through them.

Promise: a pair is told from the threshold in float64, so that the result depends neither on tiles nor on threads; memory is bounded by
the tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from dinokit.search.vectors import UNIT_ERROR, Held, tensor_of

TILE_ROWS = 2_048
TILE_COLUMNS = 4_096
RESCORED = 8_192
Numbers = Int64[np.ndarray, " n"]
Watch = Callable[[Sequence[int]], Iterable[int]]


def unwatched(steps: Sequence[int]) -> Iterable[int]:
    """The steps; a progress bar such as tqdm may stand in this place."""
    return steps


def close_pairs(
    vectors: Held,
    thresholds: Sequence[float],
    *,
    rows: int = TILE_ROWS,
    columns: int = TILE_COLUMNS,
    watch: Watch = unwatched,
) -> Iterator[tuple[Numbers, Numbers, Float32[np.ndarray, " n"]]]:
    """Pairs (i, j), i < j, whose cosine is at least the smallest of `thresholds`, and the cosine.

    `vectors` have length 1 (see `held`). Cosines near a threshold are computed in float64, others may be off by 1e-4.
    `watch` goes around the rows of tiles, of which the first are the longest.
    """
    levels = np.sort(np.asarray(thresholds, np.float64))
    margin = 2 * (vectors.dim + 8) * 2.0**-24 + 2 * UNIT_ERROR
    for first in watch(range(0, len(vectors), rows)):
        left = vectors.read(first, min(first + rows, len(vectors)))
        for second in range(first, len(vectors), columns):
            right = vectors.read(second, min(second + columns, len(vectors)))
            products = (tensor_of(left) @ tensor_of(right).T).numpy()
            i, j = np.divmod(np.flatnonzero(products >= levels[0] - margin), products.shape[1])
            later = first + i < second + j
            i, j = i[later], j[later]
            cosines = products[i, j]
            for part in np.array_split(np.flatnonzero(_near(cosines, levels, margin)), max(len(i) // RESCORED, 1)):
                cosines[part] = exact_cosines(left[i[part]], right[j[part]])
            kept = cosines >= levels[0].astype(np.float32)
            if kept.any():
                yield first + i[kept], second + j[kept], cosines[kept]


def _near(cosines: Float32[np.ndarray, " n"], levels: np.ndarray, margin: float) -> Bool[np.ndarray, " n"]:
    near = np.zeros(len(cosines), bool)
    for level in levels:
        near |= np.abs(cosines - level) <= margin
    return near


def exact_cosines(left: Float32[np.ndarray, "n d"], right: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, " n"]:
    """Cosine of each row with its counterpart, in float64, rounded; 0 for a zero vector."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b))
    found: Float32[np.ndarray, " n"] = (np.einsum("nd,nd->n", a, b) / np.maximum(norms, 1e-300)).astype(np.float32)
    return found


class Components:
    """Numbers 0 to n - 1 that are joined one pair at a time; each component is named by its smallest number (union-find)."""

    def __init__(self, count: int) -> None:
        self.parent: Numbers = np.arange(count)

    def roots(self, numbers: Numbers | None = None) -> Numbers:
        """The component of each of these numbers, or of all."""
        numbers = np.arange(len(self.parent)) if numbers is None else numbers
        found = self.parent[numbers]
        while True:
            above = self.parent[found]
            if np.array_equal(above, found):
                self.parent[numbers] = found
                return found
            found = above

    def join(self, left: Numbers, right: Numbers) -> None:
        """Join the components of `left[i]` and `right[i]`, for each i."""
        a, b = self.roots(left), self.roots(right)
        apart = a != b
        low, high = np.minimum(a[apart], b[apart]), np.maximum(a[apart], b[apart])
        # many pairs of a tile join the same two components
        for code in np.unique(low * len(self.parent) + high).tolist():
            x, y = (self._root(number) for number in divmod(code, len(self.parent)))
            if x != y:
                self.parent[max(x, y)] = min(x, y)

    def _root(self, number: int) -> int:
        parent = self.parent
        while (above := int(parent[number])) != number:
            parent[number] = parent[above]
            number = above
        return number

    def groups(self) -> list[Numbers]:
        """The components of two and more, each ascending, in the order of their smallest numbers."""
        roots = self.roots()
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        return [part for part in np.split(order, starts[1:]) if len(part) > 1] if len(order) else []
