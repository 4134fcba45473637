"""What the benchmarks share: the machine and versions in words, whether a sample was disturbed, medians and ratios, results as JSON.

Promise: a figure never comes without the machine, the versions and the number of clean samples behind it.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
# Kept between runs: the networks are seeded, so what lies there is what would be made again.
WORK = Path(tempfile.gettempdir()) / "dinokit-benchmarks"
STOLEN_SHARE = 0.05
TICK = 0.01
MIN_CLEAN = 3
PACKAGES = ("dinokit", "torch", "transformers", "onnxruntime", "openvino", "timm", "simplejpeg", "Pillow", "numpy")
STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Sample:
    """One measurement: seconds of a pass, and the share of all processors that others took meanwhile."""

    seconds: float
    stolen: float = 0.0
    clean: bool = True


class Clock:
    """Wall time, and what the machine's processors did for others: whatever was busy beyond this process and its ended children.

    Ticks of the system's counters are 10 ms, so one tick is forgiven. Elsewhere than on Linux nothing is known: all counts as clean.
    """

    def __init__(self) -> None:
        self.wall, self.busy, self.own = time.perf_counter(), busy_seconds(), own_seconds()

    def stop(self, passes: int = 1) -> Sample:
        wall = time.perf_counter() - self.wall
        own, busy = own_seconds() - self.own, busy_seconds() - self.busy
        others, all_of_it = max(busy - own, 0.0), wall * (os.cpu_count() or 1)
        clean = others <= STOLEN_SHARE * all_of_it + TICK
        return Sample(wall / passes, others / all_of_it if all_of_it else 0.0, clean)


def busy_seconds() -> float:
    """Of all processors together since the machine started, the hypervisor's share among them."""
    if not STAT.is_file():
        return 0.0
    with STAT.open() as file:
        user, nice, system, _, _, irq, softirq, steal, *_ = (int(word) for word in file.readline().split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Of this process and the children that it has waited for."""
    if not STAT.is_file():
        return 0.0
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def most_rounds(clean: int) -> int:
    """How many rounds are made at most for so many clean ones; who asks for one gets one."""
    return 3 * clean if clean > 1 else 1


def summarise(samples: Sequence[Sample], work: float = 1.0) -> dict[str, Any]:
    """Median seconds of the clean samples (of all, and `marked`, where fewer than three are clean)."""
    clean = [sample.seconds for sample in samples if sample.clean]
    marked = len(clean) < MIN_CLEAN
    seconds = [sample.seconds for sample in samples] if marked else clean
    low, median, high = quartiles(seconds)
    return {
        "seconds": median,
        "seconds_quartiles": [low, high],
        "per_second": work / median,
        "clean": len(clean),
        "dropped": len(samples) - len(clean),
        "marked": marked,
    }


def ratios(base: Sequence[Sample], other: Sequence[Sample]) -> dict[str, Any]:
    """How many times `other` is as fast as `base`, round by round: median and quartiles.

    Over the rounds in which both samples are clean; over all, and `marked`, where these are fewer than three.
    """
    pairs = list(zip(base, other, strict=False))
    clean = [a.seconds / b.seconds for a, b in pairs if a.clean and b.clean]
    marked = len(clean) < MIN_CLEAN
    low, median, high = quartiles([a.seconds / b.seconds for a, b in pairs] if marked else clean)
    return {"median": median, "quartiles": [low, high], "rounds": len(clean), "marked": marked}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def peak_rss_mib(usage: resource.struct_rusage) -> float:
    """Of the largest process that a `rusage` tells of."""
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """The machine, as PyTorch and the system see it."""
    import torch

    from dinokit.engine import look

    found = look(device)
    facts = {key: value for key, value in asdict(found).items() if value not in ("", False)}
    facts |= {
        "cpus": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.startswith("cuda"):
        facts |= {"cuda": torch.version.cuda, "gpu_memory_gib": round(torch.cuda.mem_get_info()[1] / (1 << 30), 1)}
    return facts


def versions() -> dict[str, str]:
    """Of Python and the packages that are measured."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)


def write_result(out: Path | None, benchmark: str, settings: dict[str, Any], **content: Any) -> None:
    """A JSON file beside the table: what was measured, where, with what."""
    if out is None:
        return
    result = {
        "benchmark": benchmark,
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine_facts(settings.get("device", "cpu")),
        "versions": versions(),
        "settings": settings,
        **content,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    say(f"wrote {out.name}")


def say(text: str) -> None:
    """Words for a person: stderr."""
    print(text, file=sys.stderr, flush=True)


def ratio_cells(ratio: dict[str, Any] | None) -> list[str]:
    """A ratio and its quartiles; an exclamation mark where fewer than three rounds were clean."""
    if ratio is None:
        return ["", ""]
    low, high = ratio["quartiles"]
    return [f"{ratio['median']:.2f}" + ("!" if ratio["marked"] else ""), f"{low:.2f}-{high:.2f}"]


def clean_cell(summary: dict[str, Any]) -> str:
    """How many samples were clean."""
    return f"{summary['clean']} of {summary['clean'] + summary['dropped']}"


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Rows under a head, as Markdown whose columns stand under each other."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
    rule = ["-" * widths[0], *(("-" * (width - 1)) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
