"""Kill -9 of an embedding job at random moments, 200 times, and 50 writers at once.

    python benchmarks/kills.py [--kills 200] [--images 10000] [--writers 50] [--out benchmarks/results/kills.json]

A tiny random network over small images; each run is a process that is killed after a random while and started again on the same folder;
a folder that is complete is compared with that of an undisturbed run and begun anew. Every tenth run decodes in processes of its own.
Printed: rows lost, doubled, misaligned; rows given to the network again after kills; temporary files left; whether the bytes are the
same; and which bars hold (exit code 1 if one does not).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from dinokit.config import ViTConfig
from dinokit.extract import ExtractJob, Forward, JobOptions
from dinokit.images import ImageTransform
from dinokit.model import VisionTransformer
from dinokit.weights.load import Pretrained, Provenance

SHARD = 250


def counted(shared: mmap.mmap) -> Any:
    """`Forward.__call__` that first leaves the number of rows where the parent sees it, whatever happens to this process."""
    forward = Forward.__call__

    def call(made: Forward, chunk: Any, names: Any) -> Any:
        rows = struct.unpack("<q", shared[:8])[0] + sum(ready is not None for ready in chunk)
        shared[:8] = struct.pack("<q", rows)
        return forward(made, chunk, names)

    return call


def tiny(folder: Path) -> Pretrained:
    """A network of two blocks, and a file that stands for its weights."""
    torch.manual_seed(0)
    config = ViTConfig(embed_dim=32, depth=2, num_heads=2, ffn_dim=64, num_register_tokens=4, image_size=(28, 28))
    (folder / "weights").write_bytes(b"tiny")
    return Pretrained(
        model=VisionTransformer(config).eval(),
        transform=ImageTransform.squash(28),
        provenance=Provenance(name="tiny", path=folder / "weights", files=(folder / "weights",), layout="official"),
    )


def make_images(folder: Path, count: int) -> None:
    """Files of random pixels; every 97th is none."""
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i // 1000:03}" / f"{i:06}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % 97 == 5:
            path.write_bytes(b"no image")
        else:
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def content(folder: Path) -> dict[str, bytes]:
    """All whose bytes are promised."""
    skipped = ("_lock", "_plan.lock", "_run.json")
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(skipped)}


def run_and_kill(job: ExtractJob, shared: mmap.mmap, seconds: float | None) -> tuple[bool, int]:
    """(Whether it was killed, rows it had given to the network)."""
    shared[:8] = struct.pack("<q", 0)
    child = os.fork()
    if child == 0:
        code = 1
        Forward.__call__ = counted(shared)  # type: ignore[method-assign]
        try:
            job.run()
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, "a run ended by itself with an error"
    return os.WIFSIGNALED(status), struct.unpack("<q", shared[:8])[0]


def rows_in(out: Path) -> int:
    """Rows in place."""
    return sum(pq.read_metadata(path).num_rows for path in out.glob("part-*"))


def check(out: Path, expected: dict[str, bytes], whole: Path, figures: dict[str, Any]) -> None:
    """Compare a complete folder with the undisturbed one, row by row and byte by byte."""
    found = [row for path in sorted(out.glob("part-*")) for row in pq.read_table(path).to_pylist()]
    want = [row for path in sorted(whole.glob("part-*")) for row in pq.read_table(path).to_pylist()]
    ids, wanted = [row["id"] for row in found], {row["id"]: row for row in want}
    figures["lost"] += len(set(wanted) - set(ids))
    figures["doubled"] += len(ids) - len(set(ids))
    figures["misaligned"] += sum(wanted.get(row["id"]) != row for row in found)
    figures["tmp_left"] += len(list(out.glob(".*.tmp")))
    figures["folders_with_other_bytes"] += content(out) != expected
    figures["folders_compared"] += 1


def kills(place: Path, count: int, images: int) -> dict[str, Any]:
    """The whole game."""
    pre, photos = tiny(place), place / "photos"
    make_images(photos, images)
    shared = mmap.mmap(-1, 8)

    def job(out: Path, workers: int) -> ExtractJob:
        options = JobOptions(shard_size=SHARD, batch_size=8, workers=workers)
        return ExtractJob(pre, photos, out, options=options)

    whole, out = place / "whole", place / "out"
    started = time.perf_counter()
    run_and_kill(job(whole, 0), shared, None)
    length, expected = time.perf_counter() - started, content(whole)
    common.say(f"undisturbed: {images:,} images in {length:.1f} s, {len(list(whole.glob('part-*')))} shards")
    names = (
        "kills",
        "starts",
        "lost",
        "doubled",
        "misaligned",
        "redone",
        "tmp_left",
        "folders_with_other_bytes",
        "folders_compared",
    )
    figures: dict[str, Any] = dict.fromkeys(names, 0)
    chance, worst = random.Random(0), 0
    while figures["kills"] < count:
        before = rows_in(out) if out.exists() else 0
        workers = 2 if figures["starts"] % 10 == 9 else 0
        longest = length * 6 * SHARD / images + (4.0 if workers else 0.2)
        killed, computed = run_and_kill(job(out, workers), shared, chance.uniform(0, longest))
        figures["starts"] += 1
        figures["kills"] += killed
        if killed:
            redone = computed - (rows_in(out) - before if out.exists() else 0)
            figures["redone"] += redone
            worst = max(worst, redone)
        else:
            check(out, expected, whole, figures)
            shutil.rmtree(out)
        if killed and figures["kills"] % 20 == 0:
            common.say(f"{figures['kills']} kills, {rows_in(out) if out.exists() else 0:,} rows in place")
    run_and_kill(job(out, 2), shared, None)
    check(out, expected, whole, figures)
    return figures | {
        "worst_redone_in_shards": round(worst / SHARD, 3),
        "rows": images,
        "shard_size": SHARD,
        "undisturbed_s": round(length, 2),
    }


def writers(place: Path, count: int) -> dict[str, Any]:
    """One job at work, and `count` - 1 commands that want the same folder."""
    pre = tiny(place)
    out, photos = place / "shared", place / "photos"
    from dinokit.extract.lock import FolderLock

    del pre
    out.mkdir()
    command = [sys.executable, "-m", "dinokit.cli.main", "embed", str(photos), "-o", str(out)]
    with FolderLock(out):
        alone = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        alone = time.perf_counter() - alone
        started = time.perf_counter()
        running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(count - 1)]
        ends = []
        for process in running:
            _, err = process.communicate()
            assert "is being written by process" in err
            ends.append(time.perf_counter() - started)
        codes = [process.returncode for process in running]
    return {
        "writers": count, "refused_with_6": codes.count(6), "seconds_alone": round(alone, 2),
        "seconds_until_all_were_refused": round(max(ends), 2), "median": round(statistics.median(ends), 2),
    }  # fmt: skip


def bars(found: dict[str, Any]) -> dict[str, bool]:
    """What is promised, and whether it held."""
    of_writers = found.get("writers")
    return {
        "no row lost, doubled or misaligned": not (found["lost"] or found["doubled"] or found["misaligned"]),
        "at most one shard done again per kill": found["worst_redone_in_shards"] <= 1,
        "the bytes of an undisturbed run": found["folders_with_other_bytes"] == 0,
        "no temporary file left": found["tmp_left"] == 0,
    } | ({"all other writers refused": of_writers["refused_with_6"] == of_writers["writers"] - 1} if of_writers else {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=50, help="0: leave them out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = kills(Path(place), arguments.kills, arguments.images)
        if arguments.writers:
            found["writers"] = writers(Path(place), arguments.writers)
    found["bars"] = bars(found)
    print(json.dumps(found, indent=2))
    settings = {"kills": arguments.kills, "images": arguments.images, "writers": arguments.writers, "shard_size": SHARD}
    common.write_result(arguments.out, "kills", settings, **found)
    common.say(
        f"{found['kills']} kills; at worst {found['worst_redone_in_shards']:.2f} of a shard's rows were done again; "
        + "; ".join(f"{name}: {'holds' if held else 'DOES NOT HOLD'}" for name, held in found["bars"].items())
    )
    return 0 if all(found["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
