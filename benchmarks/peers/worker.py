"""A process that holds one engine and does what it is told, a line of JSON each: prepare a batch, make a sample, tell its memory.

Only the worker that was told to is busy, so rounds interleave, and each engine has its own memory, allocator and threads.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import warnings
from dataclasses import asdict
from typing import Any

import common
import numpy as np

from peers import engines, networks


class Worker:
    """One engine, and the batch that it is at."""

    def __init__(self, job: engines.Job) -> None:
        self.job = job
        if job.threads:
            import torch

            torch.set_num_threads(job.threads)
        start = time.perf_counter()
        self.loaded = engines.load(job)
        self.load_seconds = time.perf_counter() - start
        self.run: engines.Run = lambda: None

    def prepare(self, batch: int, warm: int, reference: str | None = None) -> dict[str, Any]:
        """Make the pass over `batch` images, warm it up, compare its tokens with the reference."""
        self.run = self.loaded.batch(batch)
        seconds, given = 0.0, None
        for _ in range(1 + warm):
            start = time.perf_counter()
            given = self.run()
            seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "note": self.loaded.note, "value": given if isinstance(given, float) else None}
        if reference is not None:
            tokens = engines.to_numpy(given)[: networks.REFERENCE_IMAGES]
            answer |= networks.errors(tokens, np.load(reference))
        return answer

    def sample(self, passes: int) -> dict[str, Any]:
        """Time so many passes as one sample; `value` is what the last gave, where that is a number."""
        clock = common.Clock()
        value = None
        for _ in range(passes):
            value = self.run()
        return {**asdict(clock.stop(passes)), "value": value if isinstance(value, float) else None}

    def memory(self) -> dict[str, Any]:
        """Peak of this process, loading included; on a GPU also the peak there."""
        found = {"peak_rss_mib": common.peak_rss_mib(resource.getrusage(resource.RUSAGE_SELF))}
        if self.job.device.startswith("cuda"):
            import torch

            found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / (1 << 20)
        return found


def main() -> None:
    # The pipe is kept for answers; whatever a library prints goes to stderr.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    job = engines.Job(**json.loads(sys.stdin.readline()))
    try:
        worker = Worker(job)
    except engines.Skipped as reason:
        print(json.dumps({"skipped": str(reason)}), file=pipe)
        return
    print(json.dumps({"load_seconds": worker.load_seconds}), file=pipe)
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(worker, order.pop("do"))(**order)
        print(json.dumps(answer), file=pipe)


if __name__ == "__main__":
    main()
