"""Damaged files through an embedding job: 20,000 mutants of small valid images of every format.

    python benchmarks/mutants.py [--mutants 20000] [--workers 2] [--max-pixels 178956970] [--out benchmarks/results/mutants.json]

Seeds and damage are those of tests/images; the job is the real one, with a tiny random network and decoder processes. A mutant may
claim any size, and where its format allows it gets it up to the limit of pixels, which bounds
time and memory.
Printed: processes that died, the slowest image (in seconds of a processor, which others' work does not lengthen, and by the clock),
peaks of memory, what became of the mutants; and which bars hold (exit code 1 if one does not).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import pyarrow.parquet as pq
import torch
from kills import tiny

from dinokit.errors import IMAGE_ERROR_CODES
from dinokit.extract import DecodeOptions, ExtractJob, JobOptions
from dinokit.extract.options import default_workers
from dinokit.extract.prepare import How, Ready
from dinokit.extract.workers import Nursery
from dinokit.images import DEFAULT_MAX_PIXELS

sys.path.insert(0, str(common.HERE.parent))
from tests.images.corpus import seeds
from tests.images.test_fuzz import mutated

SLOWEST_S, MEMORY_MIB = 2.0, 1500
OF_PROCESSES = ("decode_timeout", "decoder_died")  # codes that a mutant must not have


@dataclass(frozen=True, kw_only=True)
class Timed(How):
    """Prepares images, and notes for each how long it took and the process' peak of memory, as lines of a file."""

    log: Path

    def __call__(self, where: Any) -> Ready:
        """As the job does it."""
        started, worked = time.perf_counter(), time.process_time()
        ready = super().__call__(where)
        seconds = time.process_time() - worked, time.perf_counter() - started
        peak = common.peak_rss_mib(resource.getrusage(resource.RUSAGE_SELF))
        with self.log.open("a") as file:
            file.write(json.dumps([os.getpid(), *seconds, peak, Path(where.name).name]) + "\n")
        return ready


def make_mutants(folder: Path, count: int) -> int:
    """Files in folders of a thousand; how many formats they are of."""
    chance, files = random.Random(20261121), seeds()
    for index in range(count):
        kind, data = files[index % len(files)]
        path = folder / f"{index // 1000:03}" / f"{index:06}-{index % len(files):02}-{kind.lower()}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutated(data, chance))
    return len({kind for kind, _ in files})


def embed(place: Path, count: int, workers: int, max_pixels: int) -> dict[str, Any]:
    """All mutants once through the job."""
    from mutants import Timed  # as a module, or the decoder processes could not import it

    log, forks = place / "log", Counter[str]()
    formats = make_mutants(place / "mutants", count)
    fork = Nursery.fork

    def counted(nursery: Nursery) -> Any:
        forks["all"] += 1
        return fork(nursery)

    Nursery.fork = counted  # type: ignore[method-assign]
    options = JobOptions(workers=workers, decode=DecodeOptions(max_pixels=max_pixels))
    job = ExtractJob(tiny(place), place / "mutants", place / "out", options=options)
    job.how = Timed(preparation=job.how.preparation, options=job.how.options, log=log)
    started = time.perf_counter()
    summary = job.run()
    seconds = time.perf_counter() - started
    codes: Counter[str] = Counter()
    for path in sorted((place / "out").glob("part-*")):
        rows = pq.read_table(path, columns=["status", "error_code"]).to_pylist()
        codes.update(row["error_code"] or row["status"] for row in rows)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    slowest = max(lines, key=lambda line: line[1])
    peaks: dict[int, float] = {}
    for pid, _, _, peak, _ in lines:
        peaks[pid] = max(peak, peaks.get(pid, 0.0))
    peak = common.peak_rss_mib(resource.getrusage(resource.RUSAGE_SELF))
    return {
        "mutants": count,
        "formats": formats,
        "seeds": len(seeds()),
        "rows": summary.status.rows_done,
        "seconds": round(seconds, 1),
        "process_deaths": forks["all"] - workers,
        "slowest_processor_s": round(slowest[1], 3),
        "slowest_by_the_clock_s": round(max(line[2] for line in lines), 3),
        "slowest": slowest[4],
        "peak_job_mib": round(peak),
        "peak_workers_mib": sorted(round(one) for one in peaks.values()),
        "peak_all_mib": round(peak + sum(peaks.values())),
        "codes": dict(sorted(codes.items())),
    }


def bars(found: dict[str, Any]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    documented = {"ok", *IMAGE_ERROR_CODES}.difference(OF_PROCESSES)
    return {
        "a row for each": found["rows"] == found["mutants"] == sum(found["codes"].values()),
        "no process died": found["process_deaths"] == 0,
        f"none takes more than {SLOWEST_S:g} s of a processor": found["slowest_processor_s"] <= SLOWEST_S,
        f"memory of all processes below {MEMORY_MIB} MiB": found["peak_all_mib"] < MEMORY_MIB,
        "only documented codes": documented.issuperset(found["codes"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=default_workers("cpu"))
    parser.add_argument("--max-pixels", type=int, default=DEFAULT_MAX_PIXELS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = embed(Path(place), arguments.mutants, arguments.workers, arguments.max_pixels)
    found["bars"] = bars(found)
    print(json.dumps(found, indent=2))
    settings = {name: getattr(arguments, name) for name in ("mutants", "workers", "max_pixels")}
    common.write_result(arguments.out, "mutants", settings, **found)
    common.say("; ".join(f"{name}: {'holds' if held else 'DOES NOT HOLD'}" for name, held in found["bars"].items()))
    return 0 if all(found["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
