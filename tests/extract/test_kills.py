"""Kill -9 at random moments, again and again: no row lost, doubled or misaligned, and the bytes of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dinokit.weights.load import Pretrained
from tests.extract.conftest import content, fill, job

KILLS = 20
ROWS = 60
OPTIONS = {"shard_size": 4, "batch_size": 4, "dense": ("registers",)}


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
def test_killed_at_random_moments_nothing_is_lost(pre: Pretrained, tmp_path: Path) -> None:
    """20 kills; between them whatever is in place is whole, and no more than the shard at hand is done again."""
    photos, out = fill(tmp_path / "photos", ROWS), tmp_path / "out"
    job(pre, photos, tmp_path / "whole", **OPTIONS).run()
    started = time.monotonic()
    assert in_a_child(pre, photos, tmp_path / "timed", 0, None) == 0
    length, expected = time.monotonic() - started, content(tmp_path / "whole")
    assert content(tmp_path / "timed") == expected
    chance, kills, ended = random.Random(1), 0, 0
    while kills < KILLS:
        before = {path.name: path.stat().st_ino for path in out.glob("part-*")} if out.exists() else {}
        status = in_a_child(
            pre, photos, out, workers=2 if kills % 5 == 4 else 0, seconds=chance.uniform(0, length * 0.7)
        )
        kills += os.WIFSIGNALED(status)
        for path in out.glob("part-*"):
            assert path.read_bytes() == expected[path.name]
            assert before.get(path.name, path.stat().st_ino) == path.stat().st_ino  # never made twice
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
