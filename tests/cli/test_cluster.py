"""`dinokit cluster`: sizes, medoids, files, sheets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dinokit.store import FeatureSet
from tests.search.pool import make


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cluster"))


def test_the_known_clusters_come_out(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """Four: three groups with their copies, and the one far from all; files and a sheet of it."""
    out = tmp_path / "clusters.parquet"
    done = dinokit_cli(
        "cluster", place / "pool", "-k", 4, "--json", "-o", out, "--sheet", tmp_path / "s.html", "--runs", 5
    )
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert sorted(row["size"] for row in answer["sizes"]) == [1, 4, 11, 21]
    assert answer["noise"] == 0
    table = pq.read_table(out).to_pylist()
    assert len(table) == 37
    by_cluster = {row["id"]: row["cluster"] for row in table}
    assert len({by_cluster[f"c0-{i}.png"] for i in range(20)}) == 1
    assert by_cluster["copy-25.png"] == by_cluster["c1-5.png"]
    FeatureSet(tmp_path / "clusters.centroids.parquet").require_same(FeatureSet(place / "pool"))
    assert (tmp_path / "s.html").read_text().count("<h2>") == 4
    lines = dinokit_cli("cluster", place / "pool", "-k", 4, "--runs", 5).out.splitlines()
    assert sorted(int(line.split("\t")[1]) for line in lines) == [1, 4, 11, 21]
    assert dinokit_cli("cluster", place / "pool", "-o", out).code == 6


def test_hdbscan_says_what_is_in_no_cluster(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """The number of clusters is found, and can't be given."""
    done = dinokit_cli(
        "cluster", place / "pool", "--method", "hdbscan", "--min-size", 4, "--json", "-o", tmp_path / "h.csv"
    )
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert answer["noise"] + sum(row["size"] for row in answer["sizes"]) == 37
    assert dinokit_cli("cluster", place / "pool", "--method", "hdbscan", "-k", 3).code == 2


def test_hdbscan_without_its_package_says_what_to_install(dinokit_cli, place: Path, monkeypatch) -> None:
    """A usage error that names the extra."""
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    bad = dinokit_cli("cluster", place / "pool", "--method", "hdbscan")
    assert bad.code == 2
    assert 'pip install "dinokit[cluster]"' in bad.err


def test_misuse_is_told(dinokit_cli, place: Path) -> None:
    """More clusters than images."""
    bad = dinokit_cli("cluster", place / "pool", "-k", 99)
    assert bad.code == 2
    assert "99 clusters of 37 vectors" in bad.err
    assert "dinokit cluster" in dinokit_cli("cluster", "--help").out
