"""How long `import dinokit` takes beside `import torch`, and how long until a model class can be used.

    python benchmarks/import_cost.py [--rounds 15] [--out import_cost.json]

Processes are started anew, in turn, so that noise of the machine meets all cases alike; medians and the ratio to `import torch`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "import torch": "import torch",
    "import dinokit": "import dinokit",
    "import torch, dinokit": "import torch, dinokit",
    "dinokit.load": "import dinokit; dinokit.load",
    "dinokit.Dinov2Model + AutoImageProcessor": "import dinokit; dinokit.Dinov2Model; dinokit.AutoImageProcessor",
    "transformers Dinov2Model + AutoImageProcessor": "from transformers import Dinov2Model, AutoImageProcessor",
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    for code in CASES.values():
        seconds(code)  # files into the page cache
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(arguments.rounds):
        for name, code in CASES.items():
            times[name].append(seconds(code))
    base = statistics.median(times["import torch"])
    print(f"{'case':<48} {'median s':>9} {'ratio':>6}")
    results = {}
    for name, values in times.items():
        median = statistics.median(values)
        results[name] = {
            "median_s": median,
            "min_s": min(values),
            "max_s": max(values),
            "ratio_to_torch": median / base,
        }
        print(f"{name:<48} {median:>9.2f} {median / base:>6.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"python": platform.python_version(), "cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
