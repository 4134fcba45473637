"""Which threshold for near duplicates: nearest neighbours, groups at each threshold, pairs to look at.

Promise: nothing is decided here; one pass over all pairs answers for all thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dinokit.search.dedup import QUERY_ROWS, check_threshold
from dinokit.search.knn import nearest
from dinokit.search.pairs import Components, Watch, close_pairs, unwatched
from dinokit.search.vectors import MEMORY, held
from dinokit.store import FeatureSet

THRESHOLDS = tuple(round(0.90 + 0.01 * i, 2) for i in range(10))
BINS = (-1.0, 0.0, 0.5, 0.6, 0.7, 0.8, 0.85, *THRESHOLDS, 0.995, 0.999, 1.0)


@dataclass(frozen=True)
class Estimate:
    """What thresholds would do. `nearest` and `similarity` are, for each image, its nearest other image and the cosine with it.

    `groups` has a line a threshold: threshold, groups, images in them, how many would be dropped.
    """

    groups: list[dict[str, Any]]
    nearest: Int64[np.ndarray, " n"]
    similarity: Float32[np.ndarray, " n"]

    def histogram(self, edges: Sequence[float] = BINS) -> list[dict[str, Any]]:
        """How many images have their nearest neighbour at which cosine: from, to, count. The last bin holds its upper edge too."""
        counts = np.histogram(
            self.similarity.astype(np.float64).clip(edges[0], edges[-1]), np.asarray(edges, np.float64)
        )[0]
        return [
            {"from": low, "to": high, "count": count}
            for low, high, count in zip(edges, edges[1:], counts.tolist(), strict=False)
        ]

    def examples(self, low: float, high: float, count: int = 3) -> list[tuple[int, int, float]]:
        """Up to `count` pairs of nearest neighbours whose cosine is in [low, high), spread over it: (number, number, cosine)."""
        inside = np.flatnonzero((self.similarity >= low) & (self.similarity < high) & (self.nearest >= 0))
        pairs: dict[tuple[int, int], float] = {}
        for i in inside[np.argsort(self.similarity[inside], kind="stable")].tolist():
            j = int(self.nearest[i])
            pairs.setdefault((min(i, j), max(i, j)), float(self.similarity[i]))
        listed = [(i, j, cosine) for (i, j), cosine in pairs.items()]
        places = np.unique(np.linspace(0, len(listed) - 1, min(count, len(listed))).round().astype(int))
        return [listed[place] for place in places]


def estimate(
    features: FeatureSet, thresholds: Sequence[float] = THRESHOLDS, *, memory: int = MEMORY, watch: Watch = unwatched
) -> Estimate:
    """Help in choosing a threshold: nearest neighbours of all images, and the groups at each threshold.

    Raises:
        ValueError: no threshold, or one that is no cosine.
        StorageError: no room for the scratch file.
    """
    if not thresholds:
        raise ValueError("give at least one threshold.")
    levels = sorted(thresholds)
    for level in levels:
        check_threshold(level)
    with held(features, unit=True, memory=memory) as vectors:
        parts = [
            nearest(block, vectors, 1, exclude=np.arange(start, start + len(block)))
            for start, block in vectors.blocks(QUERY_ROWS)
        ]
        components = [Components(len(vectors)) for _ in levels]
        for i, j, cosines in close_pairs(vectors, levels, watch=watch):
            for level, joined in zip(levels, components, strict=True):
                above = cosines >= np.float32(level)
                joined.join(i[above], j[above])
    rows = []
    for level, joined in zip(levels, components, strict=True):
        sizes = [len(group) for group in joined.groups()]
        rows.append({"threshold": level, "groups": len(sizes), "images": sum(sizes), "drop": sum(sizes) - len(sizes)})
    return Estimate(
        rows,
        np.concatenate([part.numbers[:, 0] for part in parts] or [np.zeros(0, np.int64)]),
        np.concatenate([part.scores[:, 0] for part in parts] or [np.zeros(0, np.float32)]),
    )
