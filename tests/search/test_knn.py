"""Nearest neighbours: equal to brute force whatever the blocks, among equals the smaller number first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.search import METRICS, Index, nearest
from dinokit.search import knn as knn_module
from dinokit.search.knn import at_least
from dinokit.search.vectors import InMemory, Scratch, Stored, held
from tests.search.made import a_collection, an_identity


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Every score in float64, rounded to float32, sorted by (score, number)."""
    q, x = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        order_by = np.array([[np.sum((a - b) ** 2) for b in x] for a in q]).astype(np.float32)
        scores = np.sqrt(order_by)
    else:
        products = np.array([[np.sum(a * b) for b in x] for a in q])
        if metric == "cosine":
            products /= np.maximum(np.linalg.norm(q, axis=1), 1e-300)[:, None]
            products /= np.maximum(np.linalg.norm(x, axis=1), 1e-300)
        scores = products.astype(np.float32)
        order_by = -scores
    numbers = np.argsort(order_by, axis=1, kind="stable")[:, :k]
    return numbers, np.take_along_axis(scores, numbers, axis=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    dim=st.integers(1, 9),
    k=st.integers(1, 12),
    rows=st.integers(1, 70),
    metric=st.sampled_from(METRICS),
    repeats=st.booleans(),
)
def test_the_nearest_are_those_of_brute_force(
    seed: int, n: int, dim: int, k: int, rows: int, metric: str, repeats: bool
) -> None:
    """Vectors of small whole numbers, so that ties abound and all sums are exact; also many equal vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (n, dim)).astype(np.float32)
    if repeats:
        vectors = vectors[rng.integers(0, max(n // 4, 1), n)]
    queries = rng.integers(-2, 3, (5, dim)).astype(np.float32)
    found = nearest(queries, vectors, k, metric=metric, block_rows=rows)  # type: ignore[arg-type]
    numbers, scores = brute_force(queries, vectors, k, metric)
    have = min(k, n)
    if metric == "cosine":  # quotients are rounded, in which order is open; equals must still be equal
        assert np.allclose(found.scores[:, :have], scores, atol=1e-6)
        own = np.take_along_axis(brute_force(queries, vectors, n, metric)[1], np.zeros((5, 1), np.int64), axis=1)
        assert np.allclose(found.scores[:, :1], own, atol=1e-6)
    else:
        assert np.array_equal(found.numbers[:, :have], numbers)
        assert np.array_equal(found.scores[:, :have], scores)
    assert (found.numbers[:, have:] == -1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_the_result_does_not_depend_on_blocks_or_threads(metric: str) -> None:
    """Bit for bit, for vectors of lengths from 0 to 40, some of them equal."""
    rng = np.random.default_rng(1)
    vectors = (rng.standard_normal((3_000, 48)) * rng.uniform(0, 40, (3_000, 1))).astype(np.float32)
    vectors[1_500:1_700] = vectors[rng.integers(0, 50, 200)]
    vectors[7] = 0
    queries = np.concatenate([vectors[:40], rng.standard_normal((30, 48)).astype(np.float32)])
    wanted = nearest(queries, vectors, 9, metric=metric, block_rows=3_000)  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    try:
        for rows, count in ((1, 1), (17, 2), (1_000, 2), (10_000, 1)):
            torch.set_num_threads(count)
            found = nearest(queries, vectors, 9, metric=metric, block_rows=rows)  # type: ignore[arg-type]
            assert np.array_equal(found.numbers, wanted.numbers)
            assert np.array_equal(found.scores, wanted.scores)
    finally:
        torch.set_num_threads(threads)


def test_among_many_equal_vectors_the_first_are_found() -> None:
    """Five hundred copies of one image: the smallest numbers, with cosine 1, in whatever blocks."""
    rng = np.random.default_rng(2)
    one = rng.standard_normal(24).astype(np.float32)
    vectors = np.concatenate([rng.standard_normal((10, 24)).astype(np.float32), np.tile(one, (500, 1))])
    for rows in (64, 512):
        found = nearest(one[None], vectors, 5, block_rows=rows)
        assert found.numbers.tolist() == [[10, 11, 12, 13, 14]]
        assert np.allclose(found.scores, 1)
        alone = nearest(one[None], vectors, 5, exclude=np.array([12]), block_rows=rows)
        assert alone.numbers.tolist() == [[10, 11, 13, 14, 15]]


@given(seed=st.integers(0, 99), n=st.integers(1, 400), places=st.integers(1, 5))
def test_a_cheap_bound_is_a_bound(seed: int, n: int, places: int) -> None:
    """Never above the number that it stands for, and nearly that where rows are long."""
    products = np.random.default_rng(seed).standard_normal((3, n)).astype(np.float32)
    bounds = at_least(products, places)
    if n >= places:
        assert (bounds <= np.sort(products, axis=1)[:, -places]).all()
    if n >= 32 * places:
        assert ((products >= bounds[:, None]).sum(axis=1) < n / 2).all()


def test_few_scores_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many queries are worked on in tiles, with the same result."""
    rng = np.random.default_rng(3)
    vectors, queries = rng.standard_normal((2, 300, 16)).astype(np.float32)
    wanted = nearest(queries, vectors, 4)
    monkeypatch.setattr(knn_module, "TILE", 500)
    sizes = []
    offered = knn_module._Best._candidates
    monkeypatch.setattr(
        knn_module._Best, "_candidates", lambda self, products, *rest: (sizes.append(products.size), offered(self, products, *rest))[1]
    )  # fmt: skip
    found = nearest(queries, vectors, 4, block_rows=100)
    assert np.array_equal(found.numbers, wanted.numbers)
    assert max(sizes) <= 500


def test_misuse_is_refused() -> None:
    """Other lengths, no neighbours, an unknown metric, NaN."""
    vectors = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="queries have 5 numbers"):
        nearest(np.ones((1, 5), np.float32), vectors, 1)
    with pytest.raises(ValueError, match="at least 1"):
        nearest(vectors, vectors, 0)
    with pytest.raises(ValueError, match="metric is 'hamming'"):
        nearest(vectors, vectors, 1, metric="hamming")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        nearest(vectors * np.nan, vectors, 1)
    with pytest.raises(ValueError, match="shape"):
        nearest(vectors[0], vectors, 1)


def test_an_index_reads_from_disk_and_knows_names(tmp_path: Path) -> None:
    """By number, by id (which is not its own hit), and as a graph; equal to brute force over what was stored."""
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((40, 8)).astype(np.float32)
    features = a_collection(tmp_path / "c", vectors, parts=3)
    index = Index(tmp_path / "c", block_rows=7)
    unit = features.vectors()
    scores = unit.astype(np.float64) @ unit.astype(np.float64).T
    np.fill_diagonal(scores, -2)
    numbers = np.argsort(-scores, axis=1)[:, :3]
    assert np.array_equal(index.graph(3, query_rows=11).numbers, numbers)
    hits = index.by_ids(["i5", "i39"], 3)
    assert [[hit.number for hit in row] for row in hits] == [numbers[5].tolist(), numbers[39].tolist()]
    assert [hit.rank for hit in hits[0]] == [1, 2, 3]
    assert hits[0][0].id == f"i{numbers[5, 0]}" == hits[0][0].path
    assert index.by_vectors(vectors[:1])[0][0].id == "i0"
    with pytest.raises(KeyError, match="no vector with the id nobody"):
        index.by_ids(["nobody"])


def test_collections_of_different_models_are_not_compared(tmp_path: Path) -> None:
    """Unless somebody insists."""
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((6, 8)).astype(np.float32)
    here = a_collection(tmp_path / "a", vectors)
    other = a_collection(tmp_path / "b", vectors, identity=an_identity(8, weights="b"))
    from dinokit.errors import IdentityError

    with pytest.raises(IdentityError, match="another kind"):
        list(Index(here).by_collection(other))
    ((start, found),) = Index(here).by_collection(other, 1, force=True)
    assert start == 0
    assert found.numbers[:, 0].tolist() == list(range(6))


def test_small_files_are_read_together(tmp_path: Path) -> None:
    """Blocks hold what many files hold, never more than asked for, and rows are found in any of them."""
    vectors = np.random.default_rng(7).standard_normal((53, 4)).astype(np.float32)
    features = a_collection(tmp_path / "c", vectors, parts=20, identity=an_identity(4, normalized=False))
    blocks = list(Stored(features).blocks(10))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), vectors)
    assert [start for start, _ in blocks] == [0, *np.cumsum([len(block) for _, block in blocks])[:-1]]
    assert len(blocks) <= 7
    assert max(len(block) for _, block in blocks) <= 10
    assert [row["id"] for row in features.rows([52, 0, 52, 30])] == ["i52", "i0", "i52", "i30"]
    with pytest.raises(IndexError, match="numbered 0 to 52; 53 was asked for"):
        features.rows([3, 53])


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_held_vectors_are_those_of_the_collection(tmp_path: Path, memory: int) -> None:
    """In memory or in a scratch file that is gone afterwards; with length 1 if asked for."""
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((50, 6)).astype(np.float32) * 3
    features = a_collection(tmp_path / "c", vectors, parts=2, identity=an_identity(6, normalized=False))
    with held(features, memory=memory) as found:
        assert isinstance(found, Scratch if memory == 0 else InMemory)
        path = found.path if isinstance(found, Scratch) else None
        assert np.array_equal(found.read(3, 44), vectors[3:44])
        assert np.array_equal(found.take(np.array([49, 0, 7])), vectors[[49, 0, 7]])
        assert np.array_equal(np.concatenate([block for _, block in found.blocks(8)]), vectors)
    assert path is None or not path.exists()
    with held(features, unit=True, memory=memory) as found:
        assert found.unit
        assert np.allclose(np.linalg.norm(found.read(0, 50), axis=1), 1, atol=1e-6)
