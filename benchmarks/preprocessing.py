"""From a JPEG file's bytes to the network's input: transformers, plain Pillow, dinokit exact and fast, on one thread.

    python benchmarks/preprocessing.py [--rounds 20] [--out preprocessing.json]

Two files made here: 12 megapixels (4000 x 3000, an enlarged photograph with noise, 4:2:0, quality 90) and 500 x 375. All cases take
turns in every round; a ratio is the median of the rounds' ratios, with its quartiles, so that noise of the machine meets all alike.
Differences are in grey levels of 255 against the exact way. transformers is its processor without torchvision, given an opened image.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from skimage import data

from dinokit.images import ExactPreparation, FastTransform, ImageTransform
from dinokit.images.fast_jpeg import turbo

BASE = "transformers"


def twelve_megapixels() -> bytes:
    """An upscaled photograph is smoother than a camera's, so noise is put on top."""
    large = Image.fromarray(data.astronaut()).resize((4000, 4000), Image.Resampling.BICUBIC).crop((0, 500, 4000, 3500))
    noise = np.random.default_rng(0).normal(0, 6, (3000, 4000, 3))
    return jpeg(Image.fromarray((np.asarray(large) + noise).clip(0, 255).round().astype(np.uint8)))


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling="4:2:0")
    return file.getvalue()


def plain(file: bytes, transform: ImageTransform) -> torch.Tensor:
    """What one writes by hand: Pillow's resize, crop in the middle, numpy."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    width, height = image.size
    edge = 256 / min(width, height)
    image = image.resize((int(width * edge), int(height * edge)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    pixels = (pixels - np.array(transform.mean, np.float32)) / np.array(transform.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def cases(file: bytes) -> dict[str, Callable[[], Any]]:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    transform = ImageTransform()
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3, do_resize=True, do_center_crop=True,
        do_rescale=True, do_normalize=True, image_mean=list(transform.mean), image_std=list(transform.std),
    )  # fmt: skip
    ways: dict[str, Callable[[], Any]] = {
        BASE: lambda: processor(Image.open(io.BytesIO(file)), return_tensors="pt")["pixel_values"][0],
        "plain Pillow": lambda: plain(file, transform),
        "dinokit exact": lambda: transform(file),
        "dinokit fast": lambda: FastTransform(transform)(file),
    }
    if turbo():
        ways["dinokit fast, loose"] = lambda: FastTransform(transform, "loose")(file)
    return ways


def measured(file: bytes, rounds: int) -> dict[str, dict[str, float]]:
    ways = cases(file)
    transform = ImageTransform()
    exact = ExactPreparation(transform)(file)
    grey = torch.tensor(transform.std).view(3, 1, 1) * 255
    times: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for name, way in ways.items():
        off = ((way() - exact) * grey).abs()
        results[name] = {"max_off": round(off.max().item(), 3), "mean_off": round(off.mean().item(), 5)}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - start) * 1e3)
    for name, values in times.items():
        low, middle, high = statistics.quantiles(
            [base / own for base, own in zip(times[BASE], values, strict=True)], n=4
        )
        results[name] |= {
            "median_ms": statistics.median(values), "min_ms": min(values), "ratio": middle, "ratio_low": low, "ratio_high": high,
        }  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small = Image.open(io.BytesIO(twelve_megapixels())).resize((500, 375), Image.Resampling.LANCZOS)
    files = {
        "4000 x 3000": (twelve_megapixels(), arguments.rounds),
        "500 x 375": (jpeg(small), 5 * arguments.rounds),
    }
    report: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
        "pillow": PIL.__version__, "transformers": transformers.__version__,
        "simplejpeg": getattr(turbo(), "__version__", None), "images": {},
    }  # fmt: skip
    for title, (file, rounds) in files.items():
        found = report["images"][title] = measured(file, rounds)
        print(f"\n{title}, {len(file) / 1e6:.2f} MB, {rounds} rounds, one thread")
        print(
            f"{'way':<20} {'median ms':>9} {'min ms':>7} {'x ' + BASE:>14} {'quartiles':>12} {'max off':>8} {'mean off':>9}"
        )
        for name, row in found.items():
            spread = f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}"
            print(
                f"{name:<20} {row['median_ms']:>9.2f} {row['min_ms']:>7.2f} {row['ratio']:>14.2f} {spread:>12} "
                f"{row['max_off']:>8.2f} {row['mean_off']:>9.4f}"
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
