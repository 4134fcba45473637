"""Starts a worker an engine, makes them take turns in rounds, and sums up.

Promise: one worker computes at a time; the order turns by one each round, so that no engine always follows the same other.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import common

from peers import engines
from peers.engines import Job

# Between two samples: threads of the last engine fall asleep.
PAUSE = 0.02


class WorkerProcess:
    """The driver's end of a worker. `skipped` says why it is none."""

    def __init__(self, job: Job) -> None:
        self.job = job
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        if job.threads:
            environment["OMP_NUM_THREADS"] = str(job.threads)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "peers.worker"],
            cwd=common.HERE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.skipped: str | None = None
        self._tell(asdict(job))

    def ready(self) -> None:
        """Wait until the network is loaded, or skipped."""
        self.skipped = self._hear().get("skipped")
        if self.skipped:
            self.stop()

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Have it done; the answer."""
        self._tell({"do": do, **order})
        return self._hear()

    def _tell(self, order: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.job.engine} ended (exit code {self.process.wait()}); see above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Crew:
    """Workers by name; those that can't run here are in `skipped` with the reason."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self.workers: dict[str, WorkerProcess] = {}
        self.skipped: dict[str, str] = {}
        try:
            for name, job in jobs.items():
                self.workers[name] = WorkerProcess(job)
            for name, worker in list(self.workers.items()):
                worker.ready()
                if worker.skipped:
                    self.skipped[name] = worker.skipped
                    del self.workers[name]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.stop()


class Rounds:
    """Samples of a crew in interleaved rounds, of at least `sample_seconds` each."""

    def __init__(self, crew: Crew, names: Sequence[str], first: Mapping[str, float], sample_seconds: float) -> None:
        self.crew, self.names = crew, list(names)
        self.passes = {name: max(1, math.ceil(sample_seconds / max(first[name], 1e-6))) for name in names}
        self.samples: dict[str, list[common.Sample]] = {name: [] for name in names}
        self.values: dict[str, list[float]] = {name: [] for name in names}

    def run(self, rounds: int, budget: float) -> None:
        """Until `rounds` rounds are clean throughout; past the time budget three rounds in all are enough."""
        start, done, clean = time.perf_counter(), 0, 0
        while clean < rounds:
            spent = time.perf_counter() - start
            if done >= common.MIN_CLEAN and spent * (done + 1) / done > budget:
                break
            turn = done % len(self.names)
            all_clean = True
            for name in self.names[turn:] + self.names[:turn]:
                time.sleep(PAUSE)
                answer = self.crew.workers[name].ask("sample", passes=self.passes[name])
                value = answer.pop("value")
                sample = common.Sample(**answer)
                self.samples[name].append(sample)
                if value is not None and sample.clean:
                    self.values[name].append(value)
                all_clean &= sample.clean
            done += 1
            clean += all_clean
            if done >= common.most_rounds(rounds):
                break


def label(name: str) -> str:
    """An engine in words."""
    return engines.ENGINES[name].label
