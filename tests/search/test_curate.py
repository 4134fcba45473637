"""Curation on a pool whose duplicates and clusters are known: exact numbers, every choice with its reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dinokit.errors import IdentityError
from dinokit.search.curate import balanced, retrieve_clusters, retrieve_nearest, without_duplicates
from dinokit.store import FeatureSet
from tests.search.made import a_collection, an_identity
from tests.search.test_dedup import turned

SIZES = (200, 60, 20, 8)  # of four clusters


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """Four clusters of `SIZES` images around orthogonal directions, at cosine 0.9 to them; ids c<cluster>-<number>."""
    rng = np.random.default_rng(0)
    axes = np.eye(32)[:4]
    vectors = [turned(axes[c], 0.9, rng) for c, size in enumerate(SIZES) for _ in range(size)]
    ids = [f"c{c}-{i}" for c, size in enumerate(SIZES) for i in range(size)]
    return a_collection(tmp_path_factory.mktemp("pool"), np.array(vectors, np.float32), parts=3, ids=ids)


def around(folder: Path, counts: tuple[int, ...], seed: int = 1) -> FeatureSet:
    """Queries: so many near the direction of each cluster."""
    rng = np.random.default_rng(seed)
    vectors = [turned(np.eye(32)[c], 0.97, rng) for c, count in enumerate(counts) for _ in range(count)]
    ids = [f"q{c}-{i}" for c, count in enumerate(counts) for i in range(count)]
    return a_collection(folder, np.array(vectors, np.float32), ids=ids)


def clusters_of(rows: list[dict]) -> list[int]:
    return [sum(row["id"].startswith(f"c{c}-") for row in rows) for c in range(4)]


def test_clusters_with_enough_queries_give_their_share(pool: FeatureSet, tmp_path: Path) -> None:
    """5, 4, 3, 0 queries: more than 3 lie in the first two clusters, which give up to 50 images each."""
    queries = around(tmp_path / "q", (5, 4, 3, 0))
    found = retrieve_clusters(pool, queries, 4, per_cluster=50)
    assert clusters_of(found.rows) == [50, 50, 0, 0]
    assert found.counts == {"pool": 288, "queries": 12, "clusters": 4, "clusters_hit": 2, "chosen": 100}
    assert {row["reason"] for row in found.rows} == {"cluster with 5 queries", "cluster with 4 queries"}
    assert clusters_of(retrieve_clusters(pool, queries, 4, per_cluster=500, more_than=2).rows) == [200, 60, 20, 0]
    assert clusters_of(retrieve_clusters(pool, queries, 4, per_cluster=500, more_than=2, cap=70).rows) in (
        [25, 25, 20, 0], [26, 24, 20, 0]
    )  # fmt: skip
    again = retrieve_clusters(pool, queries, 4, per_cluster=50)
    assert again.rows == found.rows
    assert retrieve_clusters(pool, queries, 4, per_cluster=50, seed=1).rows != found.rows


def test_the_nearest_of_each_query_are_found(pool: FeatureSet, tmp_path: Path) -> None:
    """As brute force says: each image once, with its best rank; the cap keeps the best ranks."""
    queries = around(tmp_path / "q", (3, 0, 2, 1))
    found = retrieve_nearest(pool, queries, 5)
    cosines = queries.vectors().astype(np.float64) @ pool.vectors().astype(np.float64).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :5]
    assert sorted(found.numbers.tolist()) == sorted(set(order.ravel().tolist()))
    for row in found.rows:
        ranks = [
            (rank + 1, -cosines[q, row["number"]], q)
            for q in range(6)
            for rank in range(5)
            if order[q, rank] == row["number"]
        ]
        rank, cosine, query = min(ranks)
        assert (row["rank"], row["query"]) == (rank, queries.ids()[query])
        assert row["similarity"] == pytest.approx(-cosine, abs=1e-6)
    capped = retrieve_nearest(pool, queries, 5, cap=4)
    best = sorted(found.rows, key=lambda row: (row["rank"], -row["similarity"], row["number"]))[:4]
    assert [row["id"] for row in capped.rows] == [row["id"] for row in sorted(best, key=lambda row: row["number"])]
    assert found.counts["chosen"] == len(found.rows) <= 30


def test_a_balanced_sample_takes_as_much_of_each_cluster(pool: FeatureSet) -> None:
    """40 of four clusters of 200, 60, 20 and 8: all 8, and 10 or 11 of the others."""
    found = balanced(pool, 40, [4], resampling_steps=2)
    counts = clusters_of(found.rows)
    assert sum(counts) == 40
    assert counts[3] == 8
    assert sorted(counts[:3]) == [10, 11, 11]
    assert {row["reason"] for row in found.rows} == {"balanced, random"}
    two = balanced(pool, 40, [12, 4], resampling_steps=2, leaf="closest")
    assert clusters_of(two.rows)[3] == 8
    assert all(len(row["cluster"].split("/")) == 2 for row in two.rows)
    assert balanced(pool, 40, [12, 4], resampling_steps=2, leaf="closest").rows == two.rows
    assert len(balanced(pool, 1_000, [4]).rows) == 288


def test_duplicates_and_leaked_images_go(tmp_path: Path) -> None:
    """Of 30 images: 2 copies, a chain of 3, a group of 2 of which one is near an evaluation image, a file of the evaluation set."""
    rng = np.random.default_rng(3)
    base = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    chain = turned(base[1], 0.97, rng)
    end = chain + 0.9 * (chain - base[1])
    leaked = turned(base[2], 0.97, rng)
    vectors = [*base[:25], base[0], chain, end / np.linalg.norm(end), leaked, base[30]]
    sums = [f"s{i}" for i in range(30)]
    pool = a_collection(tmp_path / "pool", np.array(vectors, np.float32), facts={"sha256": sums})
    # far enough from base[2] itself, so that only the group takes it along
    exam = turned(leaked, 0.97, np.random.default_rng(5))
    exams = a_collection(tmp_path / "exam", np.array([exam, base[40]], np.float32), facts={"sha256": ["e", "s29"]})
    assert exam @ base[2] < 0.96

    alone = without_duplicates(pool, threshold=0.96)
    assert alone.counts == {"pool": 30, "leaked": 0, "duplicates": 4, "chosen": 26}
    found = without_duplicates(pool, [exams], threshold=0.96)
    assert found.counts == {"pool": 30, "leaked": 3, "duplicates": 3, "chosen": 24}
    ids = {row["id"] for row in found.rows}
    assert not ids & {"i2", "i28", "i29", "i25", "i26", "i27"}
    reasons = {row["id"]: row["reason"] for row in found.rows}
    assert (reasons["i0"], reasons["i1"], reasons["i3"]) == ("kept of 2", "kept of 3", "unique")
    strict = without_duplicates(pool, [exams], threshold=0.999, relative_threshold=0.96)
    assert strict.counts == {"pool": 30, "leaked": 3, "duplicates": 1, "chosen": 26}


def test_steps_follow_each_other(pool: FeatureSet, tmp_path: Path) -> None:
    """What one step chose is the pool of the next."""
    first = balanced(pool, 60, [4], resampling_steps=1)
    queries = around(tmp_path / "q", (4, 0, 0, 0))
    second = retrieve_nearest(pool, queries, 3, among=first.numbers)
    assert set(second.numbers) <= set(first.numbers)
    assert second.counts["pool"] == 60
    assert set(balanced(pool, 10, [3], resampling_steps=1, among=first.numbers).numbers) <= set(first.numbers)
    assert set(without_duplicates(pool, among=first.numbers).numbers) == set(first.numbers)
    third = retrieve_clusters(pool, queries, 4, per_cluster=5, among=first.numbers)
    assert set(third.numbers) <= set(first.numbers)


def test_other_models_are_refused(pool: FeatureSet, tmp_path: Path) -> None:
    """As queries and as references."""
    other = a_collection(tmp_path / "o", np.eye(32, dtype=np.float32), identity=an_identity(32, weights="b"))
    with pytest.raises(IdentityError):
        retrieve_nearest(pool, other)
    with pytest.raises(IdentityError):
        retrieve_clusters(pool, other, 3)
    with pytest.raises(IdentityError):
        without_duplicates(pool, [other])
    with pytest.raises(ValueError, match="cap is -1"):
        retrieve_nearest(pool, pool, cap=-1)
