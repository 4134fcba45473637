"""Images/s by number of threads and batch size: dinokit beside transformers, all in one run.

    python benchmarks/scaling.py [--variant vits14_reg] [--threads 1 2] [--batches 1 2 4 8 16 32 64] [--out scaling.json]

One process an engine and number of threads; they take turns. What two threads gain over one, and what a batch gains over single images.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import common
from peers import driver, networks
from peers.engines import ENGINES, WHOLE, Job

NAMES = ["transformers-float32", "dinokit-float32-kept", "dinokit-int16-kept", "dinokit-int8-kept"]
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    arguments = parse()
    networks.make(arguments.variant, arguments.size, arguments.work, [])
    jobs = {
        f"{name}/{threads}": Job(name, arguments.variant, arguments.size, str(arguments.work), "cpu", threads)
        for threads in arguments.threads
        for name in arguments.engines
    }
    rows: list[dict[str, Any]] = []
    with driver.Crew(jobs) as crew:
        for batch in sorted(arguments.batches):
            rows += measure(crew, batch, arguments)
    print(table(rows))
    for name, why in crew.skipped.items():
        print(f"{name}: {why}")
    settings = {key: getattr(arguments, key) for key in ("variant", "size", "threads", "batches", "rounds")}
    common.write_result(arguments.out, "scaling", settings, rows=rows, skipped=crew.skipped)


def measure(crew: driver.Crew, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All engines at all numbers of threads, one batch size."""
    common.say(f"batch {batch} ...")
    names = list(crew.workers)
    first = {
        name: crew.workers[name].ask("prepare", batch=batch, warm=1 if batch < 16 else 0)["seconds"] for name in names
    }
    rounds = driver.Rounds(crew, names, first, arguments.sample_seconds)
    rounds.run(arguments.rounds, arguments.case_seconds)
    found = []
    for name in names:
        engine, _, threads = name.partition("/")
        one = {"engine": engine, "label": ENGINES[engine].label, "threads": int(threads), "batch": batch}
        one |= common.summarise(rounds.samples[name], batch)
        one["ratio"] = common.ratios(rounds.samples[f"{arguments.engines[0]}/{threads}"], rounds.samples[name])
        alone = rounds.samples.get(f"{engine}/{min(arguments.threads)}")
        one["over_one_thread"] = common.ratios(alone, rounds.samples[name]) if alone else None
        found.append(one)
    return found


HEAD = ("engine", "threads", "batch", "ms", "images/s", "x", "quartiles of x", "over fewest threads", "clean")


def table(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    return common.table([row(one) for one in sorted(rows, key=lambda one: (one["engine"], one["threads"]))], HEAD)


def row(one: dict[str, Any]) -> list[str]:
    more = one["over_one_thread"]
    return [
        one["label"],
        str(one["threads"]),
        str(one["batch"]),
        f"{1e3 * one['seconds']:.1f}",
        f"{one['per_second']:.2f}",
        *common.ratio_cells(one["ratio"]),
        common.ratio_cells(more)[0],
        common.clean_cell(one),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=list(networks.CONFIGS), default="vits14_reg")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--engines", nargs="+", choices=WHOLE, default=NAMES, help="the first is what ratios are to")
    parser.add_argument("--threads", nargs="+", type=int, default=list(range(1, min(os.cpu_count() or 1, 2) + 1)))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5, help="clean rounds wanted")
    parser.add_argument("--case-seconds", type=float, default=100.0, help="time that a batch size may take")
    parser.add_argument("--sample-seconds", type=float, default=0.3, help="fast passes are repeated within a sample")
    parser.add_argument("--work", type=Path, default=common.WORK, help="where networks are kept between runs")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
