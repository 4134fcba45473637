"""`dinokit curate`: each method with known numbers, steps that follow each other, options that belong elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dinokit.search.tables import read_rows
from tests.search.pool import make


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("curate"))


def test_steps_follow_each_other(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """37 images: 2 copies and 1 leaked go; then a balanced choice, and one by queries, of what is left."""
    first, second, third = (tmp_path / f"{i}.parquet" for i in (1, 2, 3))
    done = dinokit_cli(
        "curate", place / "pool", "--method", "dedup", "--against", place / "exam", "-o", first, "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["counts"] == {"pool": 37, "leaked": 1, "duplicates": 2, "chosen": 34}
    done = dinokit_cli(
        "curate", place / "pool", "--method", "balanced", "--clusters", "4", "--target", 12, "--only", first, "-o", second,
        "--sheet", tmp_path / "s.png", "--json", "--seed", 3,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["counts"]["pool"] == 34
    chosen = [row["id"] for row in read_rows(second)]
    assert len(chosen) == 12
    assert set(chosen) <= {row["id"] for row in read_rows(first)}
    retrieve = ("curate", place / "pool", "--method", "retrieve", "--queries", place / "queries")
    done = dinokit_cli(*retrieve, "-k", 2, "--only", first, "-o", third)
    assert done.code == 0, done.err
    rows = read_rows(third)
    assert {row["rank"] for row in rows} <= {1, 2}
    assert sum(row["query"] == "q5" for row in rows) == 2
    assert all(row["id"].startswith("c1-") or row["id"] == "copy-25.png" for row in rows if row["query"] == "q5")


def test_clusters_of_queries_and_caps(dinokit_cli, place: Path) -> None:
    """Five queries lie in the first cluster, one in the second: of the first 21 images, capped or not."""
    retrieve = ("curate", place / "pool", "--method", "retrieve", "--queries", place / "queries", "--by", "cluster")
    answer = json.loads(dinokit_cli(*retrieve, "--clusters", 4, "--json").out)
    assert answer["counts"]["chosen"] == 21
    assert {row["id"].split("-")[0] for row in answer["rows"]} == {"c0", "copy"}
    assert json.loads(dinokit_cli(*retrieve, "--clusters", 4, "--cap", 5, "--json").out)["counts"]["chosen"] == 5
    lines = dinokit_cli(*retrieve, "--clusters", 4, "--more-than", 0).out.splitlines()
    assert len(lines) == 32
    assert lines[0].split("\t")[1].startswith("cluster with")


def test_a_plan_of_dedup_is_a_beginning_too(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """It lists groups only; all else is kept."""
    plan = tmp_path / "plan.csv"
    assert dinokit_cli("dedup", place / "pool", "-o", plan).code == 0
    done = dinokit_cli("curate", place / "pool", "--method", "dedup", "--only", plan, "--json")
    assert json.loads(done.out)["counts"] == {"pool": 35, "leaked": 0, "duplicates": 0, "chosen": 35}
    (tmp_path / "plan.origin.json").write_text(json.dumps({"compat_id": "other"}))
    assert dinokit_cli("curate", place / "pool", "--method", "dedup", "--only", plan).code == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "dedup", "--target", 3), "--target belongs to --method balanced"),
        (("--method", "dedup", "--clusters", 3), "--clusters belongs to --method retrieve or balanced"),
        (("--method", "retrieve"), "needs --queries"),
        (("--method", "retrieve", "--clusters", 3), "--clusters belongs to --by cluster"),
        (("--method", "retrieve", "--by", "cluster", "--nearest", 3), "--nearest belongs to --by sample"),
        (("--method", "balanced", "--target", 3), "needs --target and --clusters"),
        (("--method", "balanced", "--target", 3, "--clusters", "3,x"), "whole numbers"),
        (("--method", "balanced", "--target", 3, "--clusters", "3,5"), "fall from level to level"),
        ((), "Missing option '--method'"),
    ],
)
def test_misuse_is_told(dinokit_cli, place: Path, arguments: tuple, message: str) -> None:
    """Before anything is read."""
    bad = dinokit_cli("curate", place / "pool", *arguments)
    assert (bad.code, bad.out) == (2, "")
    assert message in bad.err
