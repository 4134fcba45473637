"""Decoder processes: results in order, whoever crashes, hangs or is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dinokit.extract.workers import Workers
from tests.extract.stubs import obey


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers[Any, Any]]:
    with Workers[Any, Any](obey, 2, timeout=1.5, failed=lambda task, reason: (reason, task)) as workers:
        yield workers


def test_results_come_in_order_and_none_is_lost(pool: Workers[Any, Any]) -> None:
    """However the tasks are shared among the processes."""
    assert list(pool.map(iter(range(2000)), 16)) == list(range(2000))


def test_large_tasks_and_large_answers_do_not_block_each_other(pool: Workers[Any, Any]) -> None:
    """Both larger than what a pipe holds, in both directions at once."""
    tasks = [("bytes", 3_000_000, b"y" * 2_000_000)] * 12
    assert [len(answer) for answer in pool.map(iter(tasks), 6)] == [3_000_000] * 12


def test_who_kills_its_process_twice_is_given_up_and_nobody_else(pool: Workers[Any, Any], tmp_path: Path) -> None:
    """The tasks that the dead process held besides are done by another; one that dies once gets its second chance."""
    once = ("die once", str(tmp_path / "once"))
    tasks = [0, ("die", 1), 2, once, 4, ("die", 5), ("die", 6), 7]
    expected = [
        0,
        ("decoder_died", ("die", 1)),
        2,
        "survived",
        4,
        ("decoder_died", ("die", 5)),
        ("decoder_died", ("die", 6)),
        7,
    ]
    assert list(pool.map(iter(tasks), 8)) == expected


def test_who_hangs_is_given_up_after_the_limit(pool: Workers[Any, Any]) -> None:
    """Its process is killed; others go on meanwhile."""
    tasks = [0, ("sleep", 60), 2, 3, ("sleep", 60), 5]
    started = time.monotonic()
    found = list(pool.map(iter(tasks), 6))
    assert found == [0, ("decode_timeout", tasks[1]), 2, 3, ("decode_timeout", tasks[4]), 5]
    assert time.monotonic() - started < 30


def test_processes_that_are_killed_from_outside_are_replaced(pool: Workers[Any, Any]) -> None:
    """As the system does when memory runs out: all tasks are answered, those of the dead once more."""
    with closing(pool.map((("pid", i) for i in range(3000)), 8)) as answers:
        pids = {next(answers) for _ in range(50)}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        rest = list(answers)
    assert len(rest) == 2950
    assert set(rest) - pids


def test_the_nursery_itself_may_be_killed(pool: Workers[Any, Any]) -> None:
    """The next fork starts another."""
    pool.nursery.process.kill()
    pool.nursery.process.wait()
    assert list(pool.map(iter(range(10)), 4)) == list(range(10))


def test_an_error_of_the_tasks_themselves_is_raised(pool: Workers[Any, Any]) -> None:
    """A source that breaks is not the workers' business."""

    def tasks() -> Iterator[int]:
        yield 1
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        list(pool.map(tasks(), 4))


def test_no_process_survives_its_parent(tmp_path: Path) -> None:
    """Kill -9 of a job leaves no decoder behind, not even one that works."""
    script = (
        "import time\nfrom dinokit.extract.workers import Workers\nfrom tests.extract.stubs import obey\n"
        "w = Workers(obey, 2, timeout=100, failed=None)\n"
        "answers = w.map(iter([('pid', 1), ('pid', 2), ('sleep', 50), ('sleep', 50)]), 4)\n"
        "print(w.nursery.process.pid, next(answers), next(answers), flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [
        pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
