"""A million rows through a job with a stub for decoder and network: does its memory stay flat, how soon does a resume begin?

    python benchmarks/million_rows.py [--rows 1000000] [--out million.json]

Rows are slices of one file, as members of a tar are; each is read, summed, made into pixels and a vector of 384, and written. Memory
is the resident set, at every twentieth of the way.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinokit.config import ViTConfig
from dinokit.extract import Container, Entry, ExtractJob, JobOptions
from dinokit.extract.options import Quiet
from dinokit.images import ImageTransform, Prepared
from dinokit.store import FeatureSet
from dinokit.tokens import Tokens
from dinokit.weights.load import Pretrained, Provenance

DIM, SIDE, BYTES = 384, 4, 48
MB = 1 << 20


class StubNetwork(nn.Module):
    """One matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ViTConfig(
            embed_dim=DIM, depth=1, num_heads=6, ffn_dim=64, num_register_tokens=0, image_size=(14, 14)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.matrix = nn.Parameter(torch.randn(BYTES, DIM, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tokens:
        """A class token and nothing else."""
        return Tokens((images.flatten(1) @ self.matrix)[:, None], 0, (0, 0))


class StubPreparation:
    """Bytes are pixels."""

    fingerprint = "stub"

    def prepare(self, source: Any, **_: Any) -> Prepared:
        """As they come."""
        pixels = np.frombuffer(source.read(), np.uint8).reshape(3, SIDE, SIDE)
        return Prepared(pixels=torch.from_numpy(pixels.copy()), width=SIDE, height=SIDE, mode="RGB", frames=1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """To [0, 1]."""
        return pixels.float() / 255


@dataclass(frozen=True)
class Slices:
    """Rows that are slices of one file."""

    path: str
    rows: int
    name: str = ""

    def entries(self) -> Iterator[Entry]:
        """Each with an id of its own."""
        container = Container.of("tar", self.path)
        size = os.path.getsize(self.path) - BYTES
        for i in range(self.rows):
            yield Entry(
                f"shard/{i:08}", f"{self.path}/{i:08}.jpg", container, i * 7919 % size, BYTES, container.mtime_ns
            )


def resident() -> float:
    """MB."""
    text = Path("/proc/self/statm").read_text().split()
    return int(text[1]) * os.sysconf("SC_PAGE_SIZE") / MB


class Watching(Quiet):
    """Memory on the way, and when the first row came."""

    def __init__(self, rows: int) -> None:
        self.step, self.done, self.next, self.memory = max(rows // 20, 1), 0, 0, []  # type: ignore[var-annotated]
        self.first = 0.0

    def progress(self, rows: int, failures: list[Any]) -> None:  # noqa: ARG002 - the reporter's signature
        """At every twentieth."""
        self.first = self.first or time.perf_counter()
        self.done += rows
        if self.done >= self.next:
            self.next += self.step
            self.memory.append(resident())
            print(f"{self.done:>9,} rows, {self.memory[-1]:,.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        data, out = Path(place) / "data.bin", Path(place) / "out"
        data.write_bytes(os.urandom(MB))
        pre = Pretrained(
            model=StubNetwork().eval(),  # type: ignore[arg-type]
            transform=ImageTransform.squash(14),
            provenance=Provenance(name="stub", path=data, files=(data,), layout="stub"),
        )

        def job() -> tuple[ExtractJob, Watching]:
            watching = Watching(arguments.rows)
            source = Slices(str(data), arguments.rows)
            options = JobOptions(batch_size=64, workers=0)
            return ExtractJob(pre, [source], out, (), options, StubPreparation(), watching), watching  # type: ignore[arg-type]

        started = time.perf_counter()
        made, watching = job()
        summary = made.run()
        found: dict[str, Any] = {
            "rows": summary.status.rows_done,
            "failed": summary.status.failed.total(),
            "seconds": round(time.perf_counter() - started, 1),
            "seconds_until_first_row": round(watching.first - started, 2),
            "rows_per_second": round(summary.rows / summary.seconds),
            "memory_MB_first_and_last": [round(watching.memory[1]), round(watching.memory[-1])],
            "memory_spread_MB": round(max(watching.memory[1:]) - min(watching.memory[1:]), 1),
        }
        last = sorted(out.glob("part-*"))[-1]
        last.unlink()
        started = time.perf_counter()
        made, watching = job()
        made.run()
        found["seconds_until_a_resume_s_first_row"] = round(watching.first - started, 2)
        started = time.perf_counter()
        found["seconds_for_status"] = round((made.status() and time.perf_counter()) - started, 2)
        found["vectors"] = len(FeatureSet(out))
        found["bytes_on_disk_MB"] = round(sum(path.stat().st_size for path in out.iterdir()) / MB)
    print(json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
