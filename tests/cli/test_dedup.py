"""`dinokit dedup`: plans, estimates, leakage, sheets; files are only read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.search.pool import make


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("dedup"))


def test_the_plan_goes_to_stdout_or_to_a_file(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """Lines, JSON, and the same rows in each kind of file; no image is touched."""
    before = sorted((path.name, path.read_bytes()) for path in (place / "photos").iterdir())
    lines = dinokit_cli("dedup", place / "pool").out.splitlines()
    assert [line.split("\t")[:4] for line in lines] == [
        ["0", "keep", "", "kept"],
        ["0", "drop", "1.0000", "sha256"],
        ["1", "keep", "", "kept"],
        ["1", "drop", "1.0000", "vector"],
    ]
    assert lines[0].endswith("copy-0.png")  # it has more pixels
    answer = json.loads(dinokit_cli("dedup", place / "pool", "--json").out)
    assert (answer["schema"], answer["images"], answer["groups"], answer["drop"]) == (1, 37, 2, 2)
    assert [row["id"] for row in answer["rows"]] == ["copy-0.png", "c0-0.png", "copy-25.png", "c1-5.png"]
    for suffix in ("csv", "jsonl", "parquet"):
        done = dinokit_cli("dedup", place / "pool", "-o", tmp_path / f"plan.{suffix}", "--keep", "first", "--json")
        assert done.code == 0, done.err
        assert "rows" not in json.loads(done.out)
    with (tmp_path / "plan.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["action"]) for row in rows] == [
        ("c0-0.png", "keep"), ("copy-0.png", "drop"), ("c1-5.png", "keep"), ("copy-25.png", "drop")
    ]  # fmt: skip
    assert json.loads((tmp_path / "plan.origin.json").read_text())["settings"]["keep"] == "first"
    assert sorted((path.name, path.read_bytes()) for path in (place / "photos").iterdir()) == before
    assert dinokit_cli("dedup", place / "pool", "-o", tmp_path / "plan.csv").code == 6


def test_estimates_help_to_choose(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """Ten thresholds and a histogram, as text, as JSON, as pairs to look at."""
    done = dinokit_cli("dedup", place / "pool", "--estimate", "--sheet", tmp_path / "pairs.html")
    assert done.code == 0, done.err
    assert "0.99        2        4        2" in done.out
    assert (tmp_path / "pairs.html").read_text().count("<figure>") >= 6
    answer = json.loads(dinokit_cli("dedup", place / "pool", "--estimate", "--json").out)
    assert [row["threshold"] for row in answer["thresholds"]] == [round(0.9 + i / 100, 2) for i in range(10)]
    assert sum(row["count"] for row in answer["nearest"]) == 37
    assert dinokit_cli("dedup", place / "pool", "--estimate", "--exact").code == 2


def test_leakage_names_the_image_of_the_other_collection(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """One image of the pool is in the evaluation set; the sheet shows both."""
    done = dinokit_cli("dedup", place / "pool", place / "exam", "--json", "--sheet", tmp_path / "leaked.png")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert (row["id"], row["kept"], row["action"], row["reason"]) == ("c0-7.png", "e0.png", "drop", "near")
    assert row["similarity"] == pytest.approx(0.999, abs=1e-5)
    assert (tmp_path / "leaked.png").stat().st_size > 1_000
    assert json.loads(dinokit_cli("dedup", place / "pool", place / "exam", "--exact", "--json").out)["rows"] == []


def test_misuse_is_told(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """Thresholds that are none, files of other kinds, collections that are not there."""
    assert dinokit_cli("dedup", place / "pool", "-t", "1.2").code == 2
    assert dinokit_cli("dedup", place / "pool", "-o", tmp_path / "plan.xls").code == 2
    assert dinokit_cli("dedup", tmp_path / "nothing").code == 7
    assert "dinokit dedup" in dinokit_cli("dedup", "--help").out
