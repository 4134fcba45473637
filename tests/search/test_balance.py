"""Hierarchical k-means equals a slow reference; water-filling and balanced samples hold exactly what they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinokit.search.balance import Hierarchy, hierarchical_kmeans, sample_balanced, water_fill
from dinokit.search.kmeans import KMeans
from dinokit.search.vectors import Held
from tests.search.test_kmeans import blobs


def first_vectors(vectors: Held, k: int, rng: np.random.Generator) -> np.ndarray:
    """Centres to begin with that need no randomness."""
    return vectors.take(np.arange(k))


def slow_kmeans(points: list[np.ndarray], k: int, iterations: int) -> list[np.ndarray]:
    """Lloyd's algorithm as it is told, one vector at a time; an empty cluster is not expected."""
    centres = [point.astype(np.float64) for point in points[:k]]
    for _ in range(iterations):
        groups: list[list[np.ndarray]] = [[] for _ in range(k)]
        for point in points:
            groups[int(np.argmin([np.sum((point - centre) ** 2) for centre in centres]))].append(point)
        assert all(groups), "choose other data"
        centres = [np.mean(np.array(group, np.float64), axis=0) for group in groups]
    return centres


def slow_hierarchy(points: list[np.ndarray], sizes: list[int], steps: int, kept: list[int], iterations: int):
    """The paper's algorithm: cluster, keep the closest to each centre, cluster these, assign everything."""
    levels = []
    for k, closest in zip(sizes, kept, strict=True):
        centres = slow_kmeans(points, k, iterations)
        for _ in range(steps):
            labels = [int(np.argmin([np.sum((p - c) ** 2) for c in centres])) for p in points]
            chosen = []
            for cluster in range(k):
                members = [i for i, label in enumerate(labels) if label == cluster]
                members.sort(key=lambda i: np.sum((points[i] - centres[cluster]) ** 2))
                chosen += members[:closest]
            centres = slow_kmeans([points[i] for i in sorted(chosen)], k, iterations)
        labels = [int(np.argmin([np.sum((p - c) ** 2) for c in centres])) for p in points]
        levels.append((np.array(centres), np.array(labels)))
        points = list(np.array(centres))
    return levels


@pytest.mark.parametrize(("steps", "seed"), [(0, 0), (1, 1), (3, 2)])
def test_the_hierarchy_is_that_of_a_slow_reference(steps: int, seed: int) -> None:
    """Centres and labels of three levels, with and without resampling."""
    vectors = blobs(160, 16, dim=5, seed=seed, spread=1.2)
    sizes, kept = [16, 6, 2], [4, 2, 2]
    found = hierarchical_kmeans(
        vectors, sizes, resampling_steps=steps, resampled=kept, metric="l2", init=first_vectors, max_iter=200
    )
    wanted = slow_hierarchy(list(vectors), sizes, steps, kept, 60)
    for level, (centres, labels) in zip(found.levels, wanted, strict=True):
        assert np.array_equal(level.labels, labels)
        assert np.allclose(level.centroids, centres, atol=1e-4)
    top = wanted[2][1][wanted[1][1][wanted[0][1]]]
    assert np.array_equal(found.labels(2), top)


def test_resampling_flattens_the_density() -> None:
    """Of a crowd with 40 times as many vectors as its surroundings, fewer centres lie in the crowd afterwards."""
    rng = np.random.default_rng(0)
    crowd = rng.normal(0, 0.5, (4_000, 2))
    around = rng.uniform(-10, 10, (1_000, 2))
    vectors = np.concatenate([crowd, around]).astype(np.float32)
    inside = [
        int(np.sum(np.abs(hierarchical_kmeans(vectors, [60], resampling_steps=n, metric="l2").levels[0].centroids).max(axis=1) < 1.5))
        for n in (0, 8)
    ]  # fmt: skip
    assert inside[1] < 0.7 * inside[0]


def test_seeds_reproduce_the_hierarchy_and_the_sample() -> None:
    """And another seed gives another sample."""
    vectors = blobs(300, 9, seed=3)
    a, b = (hierarchical_kmeans(vectors, [12, 3], resampling_steps=2, seed=4) for _ in range(2))
    assert all(np.array_equal(x.centroids, y.centroids) for x, y in zip(a.levels, b.levels, strict=True))
    assert np.array_equal(sample_balanced(a, 50, seed=1), sample_balanced(b, 50, seed=1))
    assert not np.array_equal(sample_balanced(a, 50, seed=1), sample_balanced(a, 50, seed=2))


def test_misuse_is_refused() -> None:
    """Levels that do not fall, resampling that is not said for each level, unknown rules."""
    vectors = blobs(30, 3)
    for sizes in ([], [3, 3], [2, 5]):
        with pytest.raises(ValueError, match="clusters per level"):
            hierarchical_kmeans(vectors, sizes)
    with pytest.raises(ValueError, match="one number a level"):
        hierarchical_kmeans(vectors, [4, 2], resampled=[3])
    found = hierarchical_kmeans(vectors, [4, 2], resampling_steps=1)
    with pytest.raises(ValueError, match="leaf is 'all'"):
        sample_balanced(found, 3, leaf="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target is -1"):
        sample_balanced(found, -1)


@given(sizes=st.lists(st.integers(0, 40), max_size=12), target=st.integers(0, 300), seed=st.integers(0, 9))
def test_water_is_filled_to_one_level(sizes: list[int], target: int, seed: int) -> None:
    """Exactly the target or everything; nobody gives more than it has; who gives less than another has no more to give."""
    taken = water_fill(np.array(sizes, np.int64), target, np.random.default_rng(seed))
    assert taken.sum() == min(target, sum(sizes))
    assert all(0 <= t <= s for t, s in zip(taken.tolist(), sizes, strict=True))
    most = max(taken.tolist(), default=0)
    assert all(t == s or t >= most - 1 for t, s in zip(taken.tolist(), sizes, strict=True))


def made_hierarchy() -> Hierarchy:
    """Six clusters of 1, 2, 3, 10, 20 and 64 vectors; the first three in one cluster above, the others in another."""
    labels = np.repeat(np.arange(6), [1, 2, 3, 10, 20, 64])
    distances = np.arange(100, dtype=np.float32)[::-1].copy()
    low = KMeans(np.zeros((6, 2), np.float32), labels, distances, 0.0, 0)
    high = KMeans(np.zeros((2, 2), np.float32), np.array([0, 0, 0, 1, 1, 1]), np.zeros(6, np.float32), 0.0, 0)
    return Hierarchy((low, high))


@pytest.mark.parametrize(
    ("target", "wanted"),
    [(8, [1, 1, 2]), (12, [1, 2, 3]), (30, [1, 2, 3]), (100, [1, 2, 3])],
)
def test_samples_are_balanced_from_the_top_down(target: int, wanted: list[int]) -> None:
    """Both clusters above give the same as long as they can; then their own clusters do."""
    counts = np.bincount(made_hierarchy().levels[0].labels[sample_balanced(made_hierarchy(), target)], minlength=6)
    assert counts.sum() == target
    low, high = counts[:3], counts[3:]
    assert low.sum() == min(target // 2, 6)
    assert sorted(low.tolist()) == wanted
    if target == 30:
        assert high.tolist() == [8, 8, 8]


def test_the_closest_are_taken_where_asked_for() -> None:
    """Distances fall with the number, so the last of each cluster are closest."""
    chosen = sample_balanced(made_hierarchy(), 30, leaf="closest")
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5, *range(8, 16), *range(28, 36), *range(92, 100)]
    assert len(set(sample_balanced(made_hierarchy(), 77).tolist())) == 77
