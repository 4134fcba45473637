"""Damaged files through the whole job: each costs its own row, no process, and no bit of another's vector."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dinokit.errors import IMAGE_ERROR_CODES
from dinokit.extract.workers import Nursery
from dinokit.weights.load import Pretrained
from tests.extract.conftest import job
from tests.images.corpus import seeds
from tests.images.test_fuzz import mutated

MUTANTS = 2_000
WORKERS = 2
EVERY = 10  # a seed as it is among so many mutants


def vectors_by_id(folder: Path) -> dict[str, tuple[str | None, object]]:
    rows = [row for path in sorted(folder.glob("part-*")) for row in pq.read_table(path).to_pylist()]
    return {row["id"]: (row["error_code"], row["embedding"]) for row in rows}


@pytest.mark.slow
def test_mutants_cost_their_own_rows_and_nothing_else(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 of them in all formats: a row each with a documented code, no decoder dies, good images keep their bits."""
    chance, files, forks = random.Random(7), seeds(), []
    mutants, whole = tmp_path / "mutants", tmp_path / "whole"
    for folder in (mutants, whole):
        folder.mkdir()
    for index in range(MUTANTS):
        _, data = files[index % len(files)]
        (mutants / f"{index:05}.png").write_bytes(mutated(data, chance))
        if index % EVERY == 0:
            (mutants / f"{index:05}-good.png").write_bytes(data)
            (whole / f"{index:05}-good.png").write_bytes(data)
    fork = Nursery.fork
    monkeypatch.setattr(Nursery, "fork", lambda nursery: forks.append(1) or fork(nursery))
    options = {"shard_size": 512, "batch_size": 8, "hash": False, "decode_timeout": 300.0}
    summary = job(pre, mutants, tmp_path / "out", workers=WORKERS, **options).run()
    assert len(forks) == WORKERS
    found = vectors_by_id(tmp_path / "out")
    assert len(found) == summary.rows == MUTANTS + MUTANTS // EVERY
    codes = {code for code, _ in found.values()}
    assert {None, "truncated", "not_image"} <= codes <= {None, *IMAGE_ERROR_CODES}
    assert not codes & {"decode_timeout", "decoder_died"}
    job(pre, whole, tmp_path / "calm", **options).run()
    for name, good in vectors_by_id(tmp_path / "calm").items():
        assert found[name] == good, name
