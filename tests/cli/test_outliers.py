"""`dinokit outliers`: the one far from all is first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinokit.search.tables import read_rows
from tests.search.pool import make


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("outliers"))


def test_the_farthest_is_first(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """As lines, as JSON, in a table of all, on a sheet."""
    lines = dinokit_cli("outliers", place / "pool", "--top", 3).out.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("far.png")
    done = dinokit_cli(
        "outliers",
        place / "pool",
        "--top",
        5,
        "-k",
        3,
        "--json",
        "-o",
        tmp_path / "all.csv",
        "--sheet",
        tmp_path / "odd.png",
    )
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert [row["rank"] for row in answer["outliers"]] == [1, 2, 3, 4, 5]
    assert answer["outliers"][0]["id"] == "far.png"
    assert answer["outliers"][0]["score"] > 0.8
    rows = read_rows(tmp_path / "all.csv")
    assert len(rows) == 37
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "odd.png").stat().st_size > 1_000


def test_misuse_is_told(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """Outputs of other kinds, a collection that is not there."""
    assert dinokit_cli("outliers", place / "pool", "-o", tmp_path / "x.png").code == 2
    assert dinokit_cli("outliers", place / "pool", "--sheet", tmp_path / "x.csv").code == 2
    assert dinokit_cli("outliers", tmp_path / "nothing").code == 7
    assert "dinokit outliers" in dinokit_cli("outliers", "--help").out
