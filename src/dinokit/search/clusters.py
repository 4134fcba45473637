"""Clusters of a collection as files: which image is in which, and the centres as a collection of their own; HDBSCAN beside k-means.

Promise: centres keep the identity of the vectors that they are means of, so whatever reads collections reads them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dinokit.errors import MissingExtraError
from dinokit.search.facts import read_facts
from dinokit.search.kmeans import KMeans, Metric
from dinokit.search.tables import origin, write_rows
from dinokit.search.vectors import MEMORY, held, to_unit
from dinokit.search.written import write_collection
from dinokit.store import FeatureSet

COLUMNS = {
    "id": "string",
    "path": "string",
    "cluster": "int64",
    "distance": "float32",
    "medoid": "bool_",
    "number": "int64",
}
NOISE = -1


def hdbscan(
    features: FeatureSet, min_cluster_size: int = 5, *, metric: Metric = "cosine", memory: int = MEMORY
) -> KMeans:
    """Clusters by density, their number found, `NOISE` for images in none; distances are to the mean of the cluster (NaN for noise).

    By scikit-learn, with all vectors in memory; cosine is L2 between vectors of length 1, which orders pairs alike. The time grows with
    the square of the number of images.

    Raises:
        ImportError: scikit-learn is missing; says how to get it.
        ValueError: clusters of fewer than two, or more vectors than `memory`.
    """
    try:
        from sklearn.cluster import HDBSCAN
    except ImportError as error:
        raise MissingExtraError('HDBSCAN is scikit-learn\'s; pip install "dinokit[cluster]" brings it.') from error
    if not 2 <= min_cluster_size <= len(features):
        raise ValueError(
            f"min_cluster_size is {min_cluster_size}; it is at least 2, at most {len(features)}, the images."
        )
    if 4 * len(features) * features.dim > memory:
        raise ValueError(
            f"{len(features)} vectors of {features.dim} need {4 * len(features) * features.dim:,} bytes, more than memory={memory:,}; "
            f"use k-means, or allow more."
        )
    with held(features, unit=metric == "cosine", memory=memory) as vectors:
        array = vectors.read(0, len(vectors))
    found = HDBSCAN(min_cluster_size=min_cluster_size, copy=True).fit(array)
    labels = np.where(found.labels_ < 0, NOISE, found.labels_).astype(np.int64)
    return _measured(array, labels, metric)


def _measured(array: Float32[np.ndarray, "n d"], labels: np.ndarray, metric: Metric) -> KMeans:
    count = int(labels.max(initial=-1)) + 1
    means = [array[labels == cluster].mean(axis=0, dtype=np.float64) for cluster in range(count)]
    centroids = np.array(means, np.float32).reshape(count, array.shape[1])
    if metric == "cosine":
        centroids = to_unit(centroids)
    distances = np.full(len(array), np.nan, np.float32)
    inside = labels >= 0
    squared = np.sum((array[inside].astype(np.float64) - centroids[labels[inside]]) ** 2, axis=1)
    distances[inside] = np.sqrt(squared) if metric == "l2" else squared / 2
    return KMeans(centroids, labels, distances, float(np.sum(squared / (1 if metric == "l2" else 2))), 0)


def members(found: KMeans, count: int) -> list[np.ndarray]:
    """As `KMeans.closest`, also where there is noise."""
    inside = np.flatnonzero(found.labels >= 0)
    part = KMeans(found.centroids, found.labels[inside], found.distances[inside], 0.0, 0)
    return [inside[numbers] for numbers in part.closest(count)]


def cluster_rows(features: FeatureSet, found: KMeans) -> list[dict[str, Any]]:
    """One row of `COLUMNS` an image, in order; `medoid` marks the image nearest to each centre."""
    facts = read_facts(features, ("id", "path"))
    medoids = {int(numbers[0]) for numbers in members(found, 1) if len(numbers)}
    return [
        {
            "id": name,
            "path": path,
            "cluster": label,
            "distance": None if np.isnan(distance) else distance,
            "medoid": number in medoids,
            "number": number,
        }
        for number, (name, path, label, distance) in enumerate(
            zip(facts["id"], facts["path"], found.labels.tolist(), found.distances.tolist(), strict=True)
        )
    ]


def write_clusters(
    path: Path, features: FeatureSet, found: KMeans, *, overwrite: bool = False, **settings: Any
) -> tuple[Path, Path]:
    """Write the rows to `path`, the centres beside it to NAME.centroids.parquet; the path of a centre is its medoid's.

    Raises:
        ValueError, OutputError, StorageError: as `write_rows` and `write_collection`.
    """
    beside = path.with_name(f"{path.stem}.centroids.parquet")
    rows = cluster_rows(features, found)
    medoids = {row["cluster"]: row["path"] for row in rows if row["medoid"]}
    ids = [f"cluster-{i:06}" for i in range(len(found.centroids))]
    write_collection(
        beside,
        found.centroids,
        ids,
        features.identity,
        feature=features.feature,
        facts={"path": [medoids.get(i, "") for i in range(len(ids))]},
        overwrite=overwrite,
    )
    write_rows(path, rows, COLUMNS, origin(features, **settings), overwrite=overwrite)
    return path, beside
