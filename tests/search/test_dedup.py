"""Duplicates: pairs and components equal brute force, plans name every copy once, nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.errors import IdentityError
from dinokit.search.dedup import dedup, leakage
from dinokit.search.estimate import estimate
from dinokit.search.pairs import Components, close_pairs, exact_cosines
from dinokit.search.vectors import InMemory, to_unit
from tests.search.made import a_collection, an_identity


def reachable(edges: set[tuple[int, int]], count: int) -> set[frozenset[int]]:
    """Components of two and more, by walking from each number."""
    near: dict[int, set[int]] = {i: {i} for i in range(count)}
    for i, j in edges:
        near[i].add(j)
        near[j].add(i)
    found = set()
    for start in range(count):
        seen, waiting = {start}, [start]
        while waiting:
            for other in near[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        found.add(frozenset(seen))
    return {group for group in found if len(group) > 1}


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 30),
    batches=st.lists(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=15), max_size=5),
)
def test_components_are_what_can_be_reached(count: int, batches: list[list[tuple[int, int]]]) -> None:
    """In whatever batches pairs come; each is named by its smallest number."""
    components = Components(count)
    edges = set()
    for batch in batches:
        pairs = [(i % count, j % count) for i, j in batch]
        edges |= set(pairs)
        components.join(*np.array(pairs, np.int64).reshape(-1, 2).T)
    assert {frozenset(group.tolist()) for group in components.groups()} == reachable(edges, count)
    roots = components.roots()
    assert all(roots[group].tolist() == [group.min()] * len(group) for group in components.groups())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 40),
    rows=st.integers(1, 45),
    columns=st.integers(1, 45),
    threshold=st.sampled_from([0.3, 0.8, 0.97]),
)
def test_close_pairs_are_those_of_brute_force(seed: int, n: int, rows: int, columns: int, threshold: float) -> None:
    """Each pair once, the smaller number first, in whatever tiles; cosines near a threshold exactly."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5, 4))
    vectors = to_unit((centres[rng.integers(0, 5, n)] + 0.2 * rng.standard_normal((n, 4))).astype(np.float32))
    found = {}
    for i, j, cosines in close_pairs(InMemory(vectors, unit=True), [threshold], rows=rows, columns=columns):
        for pair, cosine in zip(zip(i.tolist(), j.tolist(), strict=True), cosines.tolist(), strict=True):
            assert pair not in found
            found[pair] = cosine
    wanted = {
        (i, j): float(exact_cosines(vectors[i : i + 1], vectors[j : j + 1])[0])
        for i in range(n)
        for j in range(i + 1, n)
    }
    wanted = {pair: cosine for pair, cosine in wanted.items() if cosine >= np.float32(threshold)}
    assert set(found) == set(wanted)
    assert all(abs(found[pair] - cosine) < 1e-4 for pair, cosine in wanted.items())


def turned(vector: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """A vector of length 1 at this cosine to `vector`."""
    aside = rng.standard_normal(len(vector))
    aside -= (aside @ vector) * vector
    return cosine * vector + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)


@pytest.fixture
def known(tmp_path: Path):
    """20 unrelated images; 20, 21 are files like 0; 22 has 1's vector; 23 is near 2, 24 near 23 but not 2; 25 is at 0.93 of 3."""
    rng = np.random.default_rng(0)
    base = np.linalg.qr(rng.standard_normal((64, 64)))[0][:20]
    chain = turned(base[2], 0.985, rng)
    end = chain + (chain - base[2])
    more = [base[0], base[0], base[1], chain, end / np.linalg.norm(end), turned(base[3], 0.93, rng)]
    vectors = np.concatenate([base, np.stack(more)]).astype(np.float32)
    sums = [f"{i:064}" for i in range(26)]
    sums[20] = sums[21] = sums[0]
    widths = [100] * 26
    widths[22] = 200
    facts = {"width": widths, "height": [100] * 26, "sha256": sums}
    return a_collection(tmp_path / "known", vectors, parts=2, facts=facts)


def test_the_plan_names_every_copy_once(known) -> None:
    """Three groups at 0.98: same files, same vectors with the larger image kept, a chain."""
    plan = dedup(known, 0.98)
    told = [(row["group"], row["id"], row["action"], row["kept"], row["reason"]) for row in plan.rows]
    assert told == [
        (0, "i0", "keep", "i0", "kept"),
        (0, "i20", "drop", "i0", "sha256"),
        (0, "i21", "drop", "i0", "sha256"),
        (1, "i22", "keep", "i22", "kept"),
        (1, "i1", "drop", "i22", "vector"),
        (2, "i2", "keep", "i2", "kept"),
        (2, "i23", "drop", "i2", "near"),
        (2, "i24", "drop", "i2", "near"),
    ]
    cosines = {row["id"]: row["similarity"] for row in plan.dropped}
    assert cosines["i23"] == pytest.approx(0.985, abs=1e-6)
    assert cosines["i24"] < 0.98  # reached through i23
    assert plan.summary() == {
        "images": 26, "groups": 3, "drop": 5, "keep": 21, "reasons": {"near": 2, "sha256": 2, "vector": 1}, "threshold": 0.98
    }  # fmt: skip
    assert dedup(known, 0.98, memory=0).rows == plan.rows


def test_other_thresholds_and_rules(known) -> None:
    """None means exact copies only; 0.92 joins i3 and i25; `first` keeps the first."""
    assert {row["id"] for row in dedup(known, None).dropped} == {"i20", "i21", "i1"}
    assert [row["id"] for row in dedup(known, 0.98, keep="first").rows if row["action"] == "keep"] == ["i0", "i1", "i2"]
    assert {row["id"] for row in dedup(known, 0.92).dropped} == {"i20", "i21", "i1", "i23", "i24", "i3"}  # "i25" < "i3"
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        dedup(known, 1.5)
    with pytest.raises(ValueError, match="keep is 'smallest'"):
        dedup(known, keep="smallest")  # type: ignore[arg-type]


def test_estimates_are_the_counts_of_the_plans(known) -> None:
    """For each threshold the groups and what would be dropped; the histogram counts every image."""
    found = estimate(known, [0.9, 0.95, 0.99])
    plans = {level: dedup(known, level) for level in (0.9, 0.95, 0.99)}
    assert found.groups == [
        {"threshold": level, "groups": plan.num_groups, "images": len(plan.rows), "drop": len(plan.dropped)}
        for level, plan in plans.items()
    ]
    histogram = found.histogram()
    assert sum(row["count"] for row in histogram) == 26
    assert [row["count"] for row in histogram if row["from"] == 0.93] == [2]  # i3 and i25
    assert [(i, j) for i, j, _ in found.examples(0.92, 0.94)] == [(3, 25)]
    assert len(found.examples(0.999, 2)) == 3


def test_leakage_is_what_the_other_collection_has_too(known, tmp_path: Path) -> None:
    """By file, by vector, by nearness; other models are refused."""
    rng = np.random.default_rng(1)
    vectors = known.vectors()
    probe = np.stack([turned(vectors[5], 0.99, rng), vectors[6], turned(vectors[7], 0.5, rng), vectors[8]]).astype(
        np.float32
    )
    mine = a_collection(tmp_path / "train", probe, facts={"sha256": ["x", "y", f"{7:064}", None]})
    plan = leakage(mine, known, 0.98)
    assert [(row["id"], row["kept"], row["reason"]) for row in plan.rows] == [
        ("i0", "i5", "near"),
        ("i1", "i6", "near"),
        ("i2", "i7", "sha256"),
        ("i3", "i8", "near"),
    ]
    assert plan.rows[0]["similarity"] == pytest.approx(0.99, abs=1e-6)
    assert [row["id"] for row in leakage(mine, known, None).rows] == ["i1", "i2", "i3"]
    other = a_collection(tmp_path / "other", probe, identity=an_identity(64, weights="b"))
    with pytest.raises(IdentityError):
        leakage(other, known)
    assert leakage(other, known, force=True).num_groups == 3
