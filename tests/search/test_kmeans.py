"""k-means equals scikit-learn's from the same centres, does not depend on blocks, and leaves no cluster empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans as SkKMeans

from dinokit.search.kmeans import assign, kmeans, plus_plus
from dinokit.search.vectors import InMemory, to_unit
from tests.search.made import a_collection, an_identity


def blobs(count: int, clusters: int, dim: int = 8, seed: int = 0, spread: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((clusters, dim))
    return (centres[rng.integers(0, clusters, count)] + spread * rng.standard_normal((count, dim))).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_lloyd_equals_scikit_learn_from_the_same_centres(seed: int) -> None:
    """Labels, centres, inertia and the number of iterations, run to convergence."""
    vectors = blobs(600, 12, seed=seed, spread=2.0)
    first = vectors[np.random.default_rng(seed).choice(600, 9, replace=False)]
    oracle = SkKMeans(9, init=first, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(vectors)
    found = kmeans(vectors, 9, metric="l2", init=first, tol=0, max_iter=300, block_rows=77)
    assert np.array_equal(found.labels, oracle.labels_)
    assert np.allclose(found.centroids, oracle.cluster_centers_, atol=1e-4)
    assert found.inertia == pytest.approx(oracle.inertia_, rel=1e-5)
    assert found.iterations == oracle.n_iter_


def test_an_empty_cluster_takes_the_farthest_vector_as_in_scikit_learn() -> None:
    """Two of the first centres are far from everything."""
    vectors = blobs(200, 4, seed=7, spread=1.5)
    first = np.concatenate([vectors[:3], np.full((2, 8), 1_000, np.float32)])
    first[4] *= 2
    oracle = SkKMeans(5, init=first, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(vectors)
    found = kmeans(vectors, 5, metric="l2", init=first, tol=0, max_iter=300)
    assert found.sizes.min() > 0
    assert found.inertia == pytest.approx(oracle.inertia_, rel=1e-5)
    assert sorted(found.sizes) == sorted(np.bincount(oracle.labels_))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_blocks_and_disk_change_nothing(tmp_path: Path, metric: str) -> None:
    """From an array, from a collection in parts, in memory or through a scratch file, in blocks of any size."""
    vectors = blobs(500, 6)
    wanted = kmeans(vectors, 6, metric=metric, seed=3)  # type: ignore[arg-type]
    features = a_collection(tmp_path / "c", vectors, parts=3, identity=an_identity(8, normalized=False))
    for memory, rows in ((0, 64), (1 << 20, 499), (0, 1)):
        found = kmeans(features, 6, metric=metric, seed=3, memory=memory, block_rows=rows)  # type: ignore[arg-type]
        assert np.array_equal(found.labels, wanted.labels)
        assert np.allclose(found.centroids, wanted.centroids, atol=1e-5)
        assert np.allclose(found.distances, wanted.distances, atol=1e-5)


def test_cosine_is_k_means_of_directions() -> None:
    """Lengths do not matter; centres have length 1, distances are 1 - cosine."""
    vectors = blobs(300, 5, seed=2)
    scaled = vectors * np.random.default_rng(0).uniform(0.1, 9, (300, 1)).astype(np.float32)
    a, b = (kmeans(each, 5, seed=1) for each in (vectors, scaled))
    assert np.array_equal(a.labels, b.labels)
    assert np.allclose(np.linalg.norm(a.centroids, axis=1), 1, atol=1e-6)
    cosines = np.sum(to_unit(vectors) * a.centroids[a.labels], axis=1)
    assert np.allclose(a.distances, 1 - cosines, atol=1e-5)
    assert a.inertia == pytest.approx(float(a.distances.sum()), rel=1e-5)


def test_seeds_reproduce_and_more_runs_are_not_worse() -> None:
    """The same seed, the same bits; the best of several runs."""
    vectors = blobs(400, 15, spread=1.5)
    one, same, best = (kmeans(vectors, 15, seed=5, metric="l2", n_init=n) for n in (1, 1, 8))
    assert np.array_equal(one.centroids, same.centroids)
    assert best.inertia <= one.inertia
    assert not np.array_equal(one.centroids, kmeans(vectors, 15, seed=6, metric="l2").centroids)


def test_plus_plus_begins_with_different_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each of well separated groups; copies are taken only when there is nothing else; also from a sample."""
    vectors = np.repeat(np.eye(6, dtype=np.float32) * 50, 20, axis=0) + blobs(120, 1, 6, spread=0.01)
    chosen = plus_plus(InMemory(vectors), 6, np.random.default_rng(0))
    assert sorted(chosen.argmax(axis=1).tolist()) == list(range(6))
    copies = plus_plus(InMemory(np.ones((4, 3), np.float32)), 3, np.random.default_rng(0))
    assert copies.tolist() == np.ones((3, 3)).tolist()
    monkeypatch.setattr("dinokit.search.kmeans.SEEDED_FROM", 10)
    assert len(np.unique(plus_plus(InMemory(vectors), 3, np.random.default_rng(0)), axis=0)) == 3


def test_medoids_are_the_closest_of_each_cluster() -> None:
    """As brute force says, nearest first."""
    vectors = blobs(150, 4, seed=9)
    found = kmeans(vectors, 4, metric="l2")
    for cluster, members in enumerate(found.closest(3)):
        inside = np.flatnonzero(found.labels == cluster)
        away = np.linalg.norm(vectors[inside].astype(np.float64) - found.centroids[cluster], axis=1)
        assert members.tolist() == inside[np.argsort(away, kind="stable")][:3].tolist()


def test_fewer_different_vectors_than_clusters() -> None:
    """Clusters without a vector stay empty; nothing is divided by zero."""
    vectors = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    found = kmeans(vectors, 4, metric="l2")
    assert np.isfinite(found.centroids).all()
    assert found.inertia == pytest.approx(0, abs=1e-6)
    assert sorted(found.sizes.tolist()) == [0, 0, 5, 5]


def test_given_centres_only_assign() -> None:
    """One pass, nearest centre."""
    vectors = blobs(50, 3)
    centres = vectors[:4]
    wanted = np.linalg.norm(vectors[:, None] - centres[None], axis=2).argmin(axis=1)
    assert np.array_equal(assign(vectors, centres, metric="l2", block_rows=7).labels, wanted)


def test_misuse_is_refused() -> None:
    """More clusters than vectors, no cluster, another metric, centres of another shape."""
    vectors = blobs(5, 2)
    for k in (0, 6):
        with pytest.raises(ValueError, match="clusters of 5 vectors"):
            kmeans(vectors, k)
    with pytest.raises(ValueError, match="metric is 'dot'"):
        kmeans(vectors, 2, metric="dot")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first centres have shape"):
        kmeans(vectors, 2, init=np.ones((3, 8), np.float32))
