"""Choosing images for training from a pool: without duplicates, by retrieval, or balanced over a hierarchy of clusters.

Promise: seeded and reproducible; the result lists every chosen image once, with the reason. Sources: Oquab et al. 2023, section 3 and
appendix A (deduplication, retrieval); Vo et al. 2024 (balanced sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dinokit.search.balance import Leaf, hierarchical_kmeans, sample_balanced, water_fill
from dinokit.search.dedup import QUERY_ROWS, Keep, check_threshold, duplicates, kept_of
from dinokit.search.facts import read_facts
from dinokit.search.kmeans import assign, kmeans
from dinokit.search.knn import nearest
from dinokit.search.vectors import MEMORY, Chosen, Held, Stored, held
from dinokit.store import FeatureSet

Numbers = Int64[np.ndarray, " n"]
COLUMNS = {
    "id": "string",
    "path": "string",
    "number": "int64",
    "reason": "string",
    "query": "string",
    "rank": "int64",
    "similarity": "float32",
    "cluster": "string",
}


@dataclass(frozen=True)
class Choice:
    """Chosen images in the order of the pool: rows of `COLUMNS`, None where a method has nothing to say; and counts."""

    rows: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> Numbers:
        """Of the pool."""
        return np.array([row["number"] for row in self.rows], np.int64)


def _choice(pool: FeatureSet, why: dict[int, dict[str, Any]], counts: dict[str, int]) -> Choice:
    facts = read_facts(pool, ("id", "path"))
    empty = dict.fromkeys(COLUMNS)
    rows = [
        empty | {"id": facts["id"][number], "path": facts["path"][number], "number": number} | why[number]
        for number in sorted(why)
    ]
    return Choice(rows, counts | {"chosen": len(rows)})


def _part(vectors: Held, among: Numbers | None) -> tuple[Held, Numbers]:
    """The vectors to choose from, and their numbers in the pool."""
    if among is None:
        return vectors, np.arange(len(vectors))
    among = np.unique(among)
    return Chosen(vectors, among), among


def without_duplicates(
    pool: FeatureSet,
    references: Sequence[FeatureSet] = (),
    *,
    threshold: float = 0.98,
    relative_threshold: float | None = None,
    keep: Keep = "largest",
    among: Numbers | None = None,
    memory: int = MEMORY,
) -> Choice:
    """One image of each group of duplicates, and none that hangs together with an image of `references`, such as evaluation sets.

    Groups for `references` are those at `relative_threshold` (`threshold` if None); of them whole groups are dropped. The published
    thresholds, 0.6 and 0.45, are for a copy detector's vectors; find yours with `estimate`.

    Raises:
        ValueError: a threshold that is no cosine.
        IdentityError: references that are not comparable with the pool.
    """
    relative = threshold if relative_threshold is None else relative_threshold
    for level in (threshold, relative):
        check_threshold(level)
    for reference in references:
        pool.require_same(reference)
    facts = read_facts(pool)
    with held(pool, unit=True, memory=memory) as vectors:
        part, numbers = _part(vectors, among)
        before = len(numbers)
        if references:
            sums = {value for reference in references for value in read_facts(reference, ("sha256",))["sha256"]} - {
                None
            }
            leaked = _closest(part, references) >= np.float32(relative)
            leaked |= np.array([facts["sha256"][number] in sums for number in numbers.tolist()], bool)
            roots = duplicates(part, [facts["sha256"][n] for n in numbers.tolist()], relative).roots()
            numbers = numbers[~np.isin(roots, roots[leaked])]
        part = Chosen(vectors, numbers)
        joined = duplicates(part, [facts["sha256"][n] for n in numbers.tolist()], threshold)
        groups = [numbers[group] for group in joined.groups()]
    why: dict[int, dict[str, Any]] = {number: {"reason": "unique"} for number in numbers.tolist()}
    for group in groups:
        best = kept_of(group, facts, keep)
        for number in group.tolist():
            del why[number]
        why[best] = {"reason": f"kept of {len(group)}"}
    return _choice(pool, why, {"pool": before, "leaked": before - len(numbers), "duplicates": len(numbers) - len(why)})


def _closest(vectors: Held, references: Sequence[FeatureSet]) -> Float32[np.ndarray, " n"]:
    """Cosine of each vector with the nearest of all references."""
    found = np.full(len(vectors), -np.inf, np.float32)
    for start, block in vectors.blocks(QUERY_ROWS):
        part = slice(start, start + len(block))
        for reference in references:
            found[part] = np.maximum(found[part], nearest(block, reference, 1).scores[:, 0])
    return found


def retrieve_nearest(
    pool: FeatureSet,
    queries: FeatureSet,
    k: int = 4,
    *,
    cap: int | None = None,
    among: Numbers | None = None,
    memory: int = MEMORY,
) -> Choice:
    """The `k` images of the pool nearest to each query ("sample-based" retrieval; 4 and 32 were published).

    An image that several queries find stands with the one where it ranks first, then with the most similar. `cap` keeps those of the
    best ranks, then of the largest similarity, then of the smallest number.

    Raises:
        ValueError: k below 1, or a negative cap.
        IdentityError: queries that are not comparable with the pool.
    """
    pool.require_same(queries)
    _check_cap(cap)
    found: dict[int, tuple[int, float, int]] = {}
    with held(pool, unit=True, memory=memory) as vectors:
        part, numbers = _part(vectors, among)
        for start, block in Stored(queries).blocks(QUERY_ROWS):
            neighbours = nearest(block, part, k)
            for i in range(len(block)):
                for rank, (place, score) in enumerate(
                    zip(neighbours.numbers[i].tolist(), neighbours.scores[i].tolist(), strict=True), start=1
                ):
                    if place >= 0:
                        number = int(numbers[place])
                        told = (rank, -score, start + i)
                        found[number] = min(found.get(number, told), told)
    chosen = sorted(found, key=lambda number: (found[number][:2], number))[:cap]
    names = queries.ids()
    why = {
        number: {
            "reason": "nearest", "rank": found[number][0], "similarity": -found[number][1], "query": names[found[number][2]]
        }
        for number in chosen
    }  # fmt: skip
    return _choice(pool, why, {"pool": len(numbers), "queries": len(queries), "found": len(found)})


def retrieve_clusters(
    pool: FeatureSet,
    queries: FeatureSet,
    clusters: int,
    *,
    per_cluster: int = 10_000,
    more_than: int = 3,
    cap: int | None = None,
    seed: int = 0,
    max_iter: int = 50,
    among: Numbers | None = None,
    memory: int = MEMORY,
) -> Choice:
    """Up to `per_cluster` images, at random, of each cluster of the pool in which more than `more_than` queries lie.

    "Cluster-based" retrieval, for queries that are few. `cap` is shared among clusters as evenly as they allow.

    Raises:
        ValueError: more clusters than images, or a negative cap.
        IdentityError: queries that are not comparable with the pool.
    """
    pool.require_same(queries)
    _check_cap(cap)
    rng = np.random.default_rng([seed, 1])
    with held(pool, unit=True, memory=memory) as vectors:
        part, numbers = _part(vectors, among)
        found = kmeans(part, clusters, seed=seed, max_iter=max_iter)
    hits = assign(queries, found.centroids).sizes
    wanted = np.where(hits > more_than, np.minimum(found.sizes, per_cluster), 0)
    shares = wanted if cap is None else water_fill(wanted, cap, rng)
    why: dict[int, dict[str, Any]] = {}
    members = found.closest(len(numbers))
    for cluster in np.flatnonzero(shares).tolist():
        chosen = rng.choice(np.sort(members[cluster]), shares[cluster], replace=False)
        for place in chosen.tolist():
            why[int(numbers[place])] = {
                "reason": f"cluster with {hits[cluster]} queries",
                "cluster": str(cluster),
                "similarity": 1 - float(found.distances[place]),
            }
    counts = {
        "pool": len(numbers),
        "queries": len(queries),
        "clusters": clusters,
        "clusters_hit": int((hits > more_than).sum()),
    }
    return _choice(pool, why, counts)


def balanced(
    pool: FeatureSet,
    target: int,
    clusters: Sequence[int],
    *,
    resampling_steps: int = 10,
    resampled: Sequence[int] | None = None,
    leaf: Leaf = "random",
    seed: int = 0,
    max_iter: int = 50,
    among: Numbers | None = None,
    memory: int = MEMORY,
) -> Choice:
    """`target` images, shared evenly from the top of a hierarchy of clusters down; `cluster` is the path, top first.

    Raises:
        ValueError: clusters that do not fall from level to level, or a setting out of its range.
    """
    with held(pool, unit=True, memory=memory) as vectors:
        part, numbers = _part(vectors, among)
        hierarchy = hierarchical_kmeans(
            part, clusters, resampling_steps=resampling_steps, resampled=resampled, seed=seed, max_iter=max_iter
        )
    places = sample_balanced(hierarchy, target, leaf=leaf, seed=seed)
    paths = np.stack([hierarchy.labels(level)[places] for level in reversed(range(len(clusters)))], axis=1)
    distances = hierarchy.levels[0].distances
    why: dict[int, dict[str, Any]] = {
        int(numbers[place]): {
            "reason": f"balanced, {leaf}", "cluster": "/".join(map(str, path)), "similarity": 1 - float(distances[place])
        }
        for place, path in zip(places.tolist(), paths.tolist(), strict=True)
    }  # fmt: skip
    used = {f"clusters_{level}": len(np.unique(paths[:, -1 - level])) for level in range(len(clusters))}
    return _choice(pool, why, {"pool": len(numbers), **used})


def _check_cap(cap: int | None) -> None:
    if cap is not None and cap < 0:
        raise ValueError(f"cap is {cap}; it is at least 0.")
