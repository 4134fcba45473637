"""`dinokit export`: every format, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dinokit.store import FeatureSet
from tests.search.pool import DIM, make


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("to", ["csv", "npy", "parquet", "fiftyone", "embedding-atlas"])
def test_each_format_is_written(dinokit_cli, place: Path, tmp_path: Path, to: str) -> None:
    """And told as JSON; a second time is refused without --overwrite."""
    out = tmp_path / "out"
    done = dinokit_cli("export", place / "pool", "--to", to, "-o", out, "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out)
    assert (answer["format"], answer["vectors"], answer["dim"]) == (to, 37, DIM)
    assert all(Path(name).stat().st_size > 100 for name in answer["files"])
    assert dinokit_cli("export", place / "pool", "--to", to, "-o", out).code == 6
    assert dinokit_cli("export", place / "pool", "--to", to, "-o", out, "--overwrite").code == 0


def test_an_exported_collection_is_a_collection(dinokit_cli, place: Path, tmp_path: Path) -> None:
    """Parquet can be searched, the array is the vectors."""
    assert dinokit_cli("export", place / "pool", "--to", "parquet", "-o", tmp_path / "one.parquet").code == 0
    assert dinokit_cli("search", tmp_path / "one.parquet", "--id", "far.png").code == 0
    assert dinokit_cli("export", place / "pool", "--to", "npy", "-o", tmp_path / "v.npy").code == 0
    assert np.array_equal(np.load(tmp_path / "v.npy"), FeatureSet(place / "pool").vectors())


def test_lance_without_its_package_is_a_usage_error(dinokit_cli, place: Path, tmp_path: Path, monkeypatch) -> None:
    """The message says how to get it."""
    monkeypatch.setitem(sys.modules, "lance", None)
    bad = dinokit_cli("export", place / "pool", "--to", "lance", "-o", tmp_path / "l")
    assert bad.code == 2
    assert 'pip install "dinokit[lance]"' in bad.err
    assert dinokit_cli("export", place / "pool", "--to", "xls", "-o", tmp_path / "l").code == 2
