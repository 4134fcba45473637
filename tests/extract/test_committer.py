"""How far the network may be ahead of the disk: by the rows of one shard, however slow the disk is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.errors import StorageError
from dinokit.extract import Forward
from dinokit.extract.committer import Committer
from dinokit.weights.load import Pretrained
from tests.extract.conftest import an_image, fill, job

SLOW = 0.02  # seconds that a rename takes; a batch of the tiny network takes less


class Batches:
    """A shard of so many rows; calls `commits` when it is put in place."""

    def __init__(self, rows: int, commits: Callable[[int], None]) -> None:
        self.rows, self._commits = rows, commits

    def commit(self) -> None:
        self._commits(self.rows)

    def abort(self) -> None:
        pass


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.integers(1, 12), min_size=1, max_size=8), st.data())
def test_rows_begun_and_not_in_place_never_pass_the_limit(
    limit: int, batch: int, shards: list[int], data: st.DataObject
) -> None:
    """Whatever the sizes of shards and batches and however long a commit takes; and all are put in place."""
    pauses = iter(data.draw(st.lists(st.sampled_from([0, 0.001]), min_size=len(shards), max_size=len(shards))))
    begun, in_place = 0, 0

    def commits(rows: int) -> None:
        nonlocal in_place
        time.sleep(next(pauses))
        in_place += rows

    with Committer(limit) as committer:
        for rows in (min(rows, limit) for rows in shards):
            for start in range(0, rows, batch):
                step = min(batch, rows - start)
                committer.reserve(step)
                begun += step
                assert begun - in_place <= limit
            committer.put(Batches(rows, commits))
    assert begun == in_place


def test_an_error_of_the_disk_ends_the_waiting() -> None:
    """It is raised where the next rows are asked for, not waited out."""

    def breaks(rows: int) -> None:
        raise StorageError("the disk is full")

    def embeds() -> None:
        with Committer(4) as committer:
            committer.reserve(4)
            committer.put(Batches(4, breaks))
            committer.reserve(1)

    with pytest.raises(StorageError, match="the disk is full"):
        embeds()


@pytest.mark.parametrize(("shard_size", "batch_size"), [(4, 4), (5, 2), (3, 8)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_kill_at_any_moment_costs_at_most_the_rows_of_one_shard(
    pre: Pretrained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shard_size: int,
    batch_size: int,
    workers: int,
) -> None:
    """On a slow disk, whenever rows go to the network: all that went there before, but for one shard's, are in files."""
    forward, replace, ahead = Forward.__call__, os.replace, []

    def slow(*arguments: Any) -> None:
        time.sleep(SLOW)
        replace(*arguments)

    def counted(made: Any, chunk: Any, names: Any) -> Any:
        nonlocal begun
        begun += sum(ready is not None for ready in chunk)
        ahead.append(begun - sum(pq.read_metadata(path).num_rows for path in out.glob("part-*")))
        return forward(made, chunk, names)

    begun, out, photos = 0, tmp_path / "out", fill(tmp_path / "photos", 17)
    monkeypatch.setattr(os, "replace", slow)
    monkeypatch.setattr(Forward, "__call__", counted)
    options = {"shard_size": shard_size, "batch_size": batch_size, "workers": workers}
    assert job(pre, photos, out, **options).run().rows == begun == 17
    assert max(ahead) == shard_size


def test_few_rows_of_many_shards_are_retried_beside_the_writing(
    pre: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of each shard is done again: the next is embedded while the last is written, up to one shard's rows in all."""
    photos, out = fill(tmp_path / "photos", 24, bad=lambda i: i % 3 == 0), tmp_path / "out"
    options = {"shard_size": 4, "batch_size": 4}
    job(pre, photos, out, **options).run()
    for path in photos.rglob("*.png"):
        if path.read_bytes() == b"no image":
            path.write_bytes(an_image(int(path.stem)))
    before = {path.name: path.stat().st_ino for path in out.glob("part-*")}
    forward, replace, ahead, begun = Forward.__call__, os.replace, [], 0

    def slow(*arguments: Any) -> None:
        time.sleep(SLOW)
        replace(*arguments)

    def counted(made: Any, chunk: Any, names: Any) -> Any:
        nonlocal begun
        begun += sum(ready is not None for ready in chunk)
        written = [path for path in out.glob("part-*") if before[path.name] != path.stat().st_ino]
        ahead.append(begun - sum(rows_retried[path.name] for path in written))
        return forward(made, chunk, names)

    rows_retried = {
        name: pq.read_table(out / name, columns=["status"])["status"].to_pylist().count("error") for name in before
    }
    monkeypatch.setattr(os, "replace", slow)
    monkeypatch.setattr(Forward, "__call__", counted)
    assert job(pre, photos, out, retry_failed=True, **options).run().status.failed.total() == 0
    assert 1 < max(ahead) <= 4
