"""Exact top-10 of 100 queries in a million vectors of 384 numbers: from memory and from Parquet on disk, beside faiss' flat index.

    python benchmarks/knn.py [--vectors 1000000] [--dim 384] [--queries 100] [--rounds 5] [--threads 2] [--folder DIR] [--out knn.json]

Random unit vectors. All cases are timed in turn in one process, so that noise of the machine meets all alike; medians and their ratio
to faiss. The peak of memory is measured in processes of their own, that open the collection and search it once, by the size of blocks;
one that only imports and opens is beside them. Linux only, for the peaks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from dinokit.search import nearest
from dinokit.search.vectors import InMemory, to_unit
from dinokit.search.written import write_collection
from dinokit.store import Feature, FeatureSet, Identity

K = 10
ROWS_A_PART = 100_000
PEAK_BLOCKS = (4_096, 16_384, 65_536)
ALONE = """
import numpy as np, torch
from dinokit.search import nearest
from dinokit.store import FeatureSet
torch.set_num_threads({threads})
features = FeatureSet({folder!r})
if {rows}:
    nearest(np.load({queries!r}), features, {k}, block_rows={rows})
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="Where the collection is made, and kept; a temporary one without it."
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments, arguments.folder or Path(temporary))


def run(arguments: argparse.Namespace, folder: Path) -> None:
    array, queries = made(folder, arguments.vectors, arguments.dim, arguments.queries)
    features = FeatureSet(folder)
    index = faiss.IndexFlatIP(arguments.dim)
    index.add(array)
    cases = {
        "faiss IndexFlatIP": lambda: searched_by_faiss(index, queries, arguments.threads),
        "faiss IndexFlatIP, 1 thread": lambda: searched_by_faiss(index, queries, 1),
        "dinokit, in memory": lambda: nearest(queries, InMemory(array, unit=True), K).numbers,
        "dinokit, in memory, lengths unknown": lambda: nearest(queries, array, K).numbers,
        "dinokit, from Parquet": lambda: nearest(queries, features, K).numbers,
    }
    found = {name: case() for name, case in cases.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - start)
    truth = found["faiss IndexFlatIP"]
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        ratio = median / statistics.median(times["faiss IndexFlatIP"])
        same = float((found[name] == truth).mean())
        rows.append({"case": name, "median_s": median, "times_s": values, "to_faiss": ratio, "same_as_faiss": same})
        print(
            f"{name:<38} median {median:7.3f} s ({min(values):.3f} to {max(values):.3f})   {ratio:5.2f} x faiss   "
            f"same hits {same:.4f}"
        )
    peaks = {str(rows): peak(arguments.threads, folder, rows) for rows in (0, *PEAK_BLOCKS)}
    for rows_of_block, size in peaks.items():
        what = f"blocks of {int(rows_of_block):,}" if rows_of_block != "0" else "only opened"
        print(f"peak memory, from Parquet, {what:<18} {size / 2**20:8.0f} MiB")
    print(f"the vectors are {array.nbytes / 2**20:.0f} MiB")
    if arguments.out:
        about = {"vectors": arguments.vectors, "dim": arguments.dim, "queries": arguments.queries, "k": K}
        about |= {"threads": arguments.threads, "torch": torch.__version__, "faiss": faiss.__version__}
        arguments.out.write_text(json.dumps({"about": about, "cases": rows, "peak_bytes": peaks}, indent=2) + "\n")


def searched_by_faiss(index: faiss.Index, queries: np.ndarray, threads: int) -> np.ndarray:
    """Where other programs are busy, faiss waits for its threads after every small block; one thread never waits."""
    faiss.omp_set_num_threads(threads)
    return index.search(queries, K)[1]


def made(folder: Path, count: int, dim: int, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The collection in parts, the same in memory, and the queries."""
    rng = np.random.default_rng(0)
    array = np.empty((count, dim), np.float32)
    identity = Identity(
        model={"weights_sha256": "random", "form": "", "positions": [0.0, True], "name": "random"},
        preprocess={"fingerprint": "none"},
        features=(Feature(dim=dim),),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, ROWS_A_PART):
        part = array[start : start + ROWS_A_PART]
        part[:] = to_unit(rng.standard_normal(part.shape, np.float32))
        path = folder / f"part-{start // ROWS_A_PART:08}.parquet"
        if not path.exists():
            write_collection(path, part, [f"{i:09}.jpg" for i in range(start, start + len(part))], identity)
    queries = to_unit(rng.standard_normal((num_queries, dim), np.float32))
    np.save(folder / "queries.npy", queries)
    return array, queries


def peak(threads: int, folder: Path, rows: int) -> int:
    """Bytes at most resident in a process that searches the collection on disk."""
    script = ALONE.format(threads=threads, folder=str(folder), queries=str(folder / "queries.npy"), k=K, rows=rows)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


if __name__ == "__main__":
    main()
