"""Outliers: images that are far from their nearest neighbours.

The score is the mean distance to the k nearest others: 1 - cosine, or L2. Source: Ramaswamy et al. 2000; Angiulli and Pizzuti 2002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

from dinokit.search.knn import nearest
from dinokit.search.vectors import MEMORY, Source, held

QUERY_ROWS = 16_384
COLUMNS = {
    "rank": "int64",
    "id": "string",
    "path": "string",
    "score": "float32",
    "nearest": "string",
    "similarity": "float32",
    "number": "int64",
}


@dataclass(frozen=True)
class Outliers:
    """For each image the mean distance to its k nearest others, the nearest of them, and the cosine (or distance) to that."""

    scores: Float32[np.ndarray, " n"]
    nearest: Int64[np.ndarray, " n"]
    similarity: Float32[np.ndarray, " n"]

    def top(self, count: int) -> Int64[np.ndarray, " c"]:
        """The `count` farthest, farthest first; equals by number."""
        return np.lexsort((np.arange(len(self.scores)), -self.scores))[:count]


def outliers(
    source: Source, k: int = 10, *, metric: Literal["cosine", "l2"] = "cosine", memory: int = MEMORY
) -> Outliers:
    """Scores of all images; the mean is over fewer than `k` where there are not that many others.

    Raises:
        ValueError: fewer than two images, k below 1.
        StorageError: no room for the scratch file.
    """
    parts = []
    with held(source, unit=metric == "cosine", memory=memory) as vectors:
        if len(vectors) < 2:
            raise ValueError(
                f"an outlier is far from others, so there must be two images at least; here are {len(vectors)}."
            )
        k = min(k, len(vectors) - 1)
        for start, block in vectors.blocks(QUERY_ROWS):
            parts.append(nearest(block, vectors, k, metric=metric, exclude=np.arange(start, start + len(block))))
    scores = np.concatenate([part.scores for part in parts]).astype(np.float64)
    distances = 1 - scores if metric == "cosine" else scores
    return Outliers(
        np.maximum(distances.mean(axis=1), 0).astype(np.float32),
        np.concatenate([part.numbers[:, 0] for part in parts]),
        scores[:, 0].astype(np.float32),
    )
