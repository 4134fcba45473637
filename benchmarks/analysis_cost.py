"""What it costs to look at an image: norms of all layers, attention of the last block and a PCA, in forward passes.

    python benchmarks/analysis_cost.py [--variant vitb14_reg] [--size 518] [--rounds 7] [--out analysis_cost.json]

Random weights; the forward pass and the look are timed in turn, so that noise of the machine meets both alike. Medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from dinokit.config import VARIANTS
from dinokit.images import ImageTransform
from dinokit.inspection.look import look
from dinokit.inspection.see_maps import fit_basis
from dinokit.model import VisionTransformer
from dinokit.weights.load import Pretrained, Provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="vitb14_reg")
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pre = Pretrained(
        model=VisionTransformer(VARIANTS[arguments.variant]).eval(),
        transform=ImageTransform.squash(arguments.size),
        provenance=Provenance(name=arguments.variant, path=Path("random"), files=(), layout="official"),
    )
    image = np.random.default_rng(0).integers(0, 256, (arguments.size, arguments.size, 3), dtype=np.uint8)
    cases = {"forward": lambda: pre(image), "look + PCA": lambda: fit_basis([look(pre, image)])}
    for run in cases.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.rounds):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["look + PCA"] / medians["forward"]
    for name, values in times.items():
        print(
            f"{name:<12} median {1e3 * medians[name]:8.1f} ms   (from {1e3 * min(values):.1f} to {1e3 * max(values):.1f})"
        )
    print(
        f"ratio {ratio:.2f} forward passes ({arguments.variant}, {arguments.size} px, {torch.get_num_threads()} threads)"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps({"medians_s": medians, "ratio": ratio, "times_s": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
