"""Kill -9 at random moments, again and again: no row lost, doubled or misaligned, at most one shard done again, the same bytes."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import signal
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dinokit.extract import Forward
from dinokit.weights.load import Pretrained
from tests.extract.conftest import content, fill, job

KILLS = 20
ROWS = 60
OPTIONS: dict[str, Any] = {"shard_size": 4, "batch_size": 4, "dense": ("registers",)}


class Counted:
    """How many rows were given to the network; a parent sees it whatever becomes of the child."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 8)

    @property
    def rows(self) -> int:
        return int(struct.unpack("<q", self.shared[:8])[0])

    def clear(self) -> None:
        self.shared[:8] = bytes(8)

    def wrapped(self, forward: Any) -> Any:
        def call(made: Any, chunk: Any, names: Any) -> Any:
            self.shared[:8] = struct.pack("<q", self.rows + sum(ready is not None for ready in chunk))
            return forward(made, chunk, names)

        return call


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found = Counted()
    monkeypatch.setattr(Forward, "__call__", found.wrapped(Forward.__call__))
    return found


def in_a_child(pre: Pretrained, photos: Path, out: Path, workers: int, seconds: float | None) -> int:
    """Run the job in a forked process and kill it after a while; its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads; this one has none that matter
        child = os.fork()
    if child == 0:
        code = 1
        try:
            job(pre, photos, out, workers=workers, **OPTIONS).run()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost(pre: Pretrained, tmp_path: Path, counted: Counted) -> None:
    """20 kills; between them whatever is in place is whole, and no more rows are embedded again than one shard has."""
    photos, out = fill(tmp_path / "photos", ROWS), tmp_path / "out"
    job(pre, photos, tmp_path / "whole", **OPTIONS).run()
    started = time.monotonic()
    assert in_a_child(pre, photos, tmp_path / "timed", 0, None) == 0
    length, expected = time.monotonic() - started, content(tmp_path / "whole")
    assert content(tmp_path / "timed") == expected
    chance, kills, ended = random.Random(1), 0, 0
    while kills < KILLS:
        before = {path.name: path.stat().st_ino for path in out.glob("part-*")} if out.exists() else {}
        counted.clear()
        status = in_a_child(
            pre, photos, out, workers=2 if kills % 5 == 4 else 0, seconds=chance.uniform(0, length * 0.7)
        )
        kills += os.WIFSIGNALED(status)
        for path in out.glob("part-*"):
            assert path.read_bytes() == expected[path.name]
            assert before.get(path.name, path.stat().st_ino) == path.stat().st_ino  # never made twice
        fresh = [path for path in out.glob("part-*") if path.name not in before]
        in_place = sum(pq.read_metadata(path).num_rows for path in fresh)
        assert in_place <= counted.rows <= in_place + OPTIONS["shard_size"]
        if status == 0:
            assert content(out) == expected
            ended += 1
            shutil.rmtree(out)
    assert in_a_child(pre, photos, out, 0, None) == 0
    assert content(out) == expected
    assert not list(out.glob(".*.tmp"))
    ids = [
        name for path in sorted(out.glob("part-*")) for name in pq.read_table(path, columns=["id"])["id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == ROWS
