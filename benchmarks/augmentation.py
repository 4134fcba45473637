"""What an image's crops cost: each stage of dinokit's way beside a straightforward one with Pillow alone, in CPU milliseconds an image.

    python benchmarks/augmentation.py [--images 24] [--rounds 3] [--device cpu] [--out augmentation.json]

2 global crops of 224 and 8 local ones of 98 from JPEGs of 500 x 375 and 2000 x 1500, one thread. Rows alternate within a round, so
that noise of the machine meets all alike; medians over the rounds. With `--device cuda`, the colour stage is timed there, too.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from dinokit.images import IMAGENET_MEAN, IMAGENET_STD, decode
from dinokit.train.data import Augmentation, Batches, Order, Plan, Views
from dinokit.train.data.crops import boxes, crop_numbers, crop_pixels
from dinokit.train.data.photometric import HUE, Choices, draw_choices
from dinokit.train.data.procedural import Procedural
from dinokit.train.data.shapetex import ShapeTex
from dinokit.train.data.sources import pixels_and_boxes
from dinokit.train.data.textures import Textures

AUGMENTATION = Augmentation.dinov2()
SIZES = {"500 x 375": (500, 375), "2000 x 1500": (2000, 1500)}


def jpegs(count: int, size: tuple[int, int]) -> list[bytes]:
    """Made images of many leaves, enlarged: less fine detail than photographs, so decoding is a little cheaper."""
    out = []
    for image in Procedural(count, 256).batch(range(count)):
        file = io.BytesIO()
        Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        out.append(file.getvalue())
    return out


# as a batch draws them: for many images at once
NUMBERS = [crop_numbers(0, np.arange(256), first, rule.count) for rule, first in AUGMENTATION.crop_rules()]


def places(visit: int, height: int, width: int) -> list[tuple[np.ndarray, int]]:
    return [
        (boxes(numbers[visit], height, width, rule), rule.size)
        for numbers, (rule, _) in zip(NUMBERS, AUGMENTATION.crop_rules(), strict=True)
    ]


def pillow_crops(image: Image.Image, visit: int) -> list[Image.Image]:
    return [
        image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        for found, size in places(visit, image.height, image.width)
        for top, left, h, w in found.tolist()
    ]


def pillow_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    moved = np.asarray(hue) + np.uint8(round(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(moved), saturation, value)).convert("RGB")


def pillow_altered(image: Image.Image, choices: Choices) -> torch.Tensor:
    if choices.flip[0]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for turn, (own, grey, mean) in enumerate(choices.blends[0].tolist()):
        if choices.hue_at[0] == turn:
            image = pillow_hue(image, float(choices.turns[0]))
        elif mean:
            image = ImageEnhance.Contrast(image).enhance(own)
        elif grey == 1:
            image = image.convert("L").convert("RGB")
        elif grey:
            image = ImageEnhance.Color(image).enhance(own)
        elif own != 1:
            image = ImageEnhance.Brightness(image).enhance(own)
    if choices.blur[0]:
        image = image.filter(ImageFilter.GaussianBlur(float(choices.sigmas[0])))
    if choices.solarize[0]:
        image = ImageOps.solarize(image, 128)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
    return x.sub_(torch.tensor(IMAGENET_MEAN)[:, None, None]).div_(torch.tensor(IMAGENET_STD)[:, None, None])


def cases(data: list[bytes]) -> dict[str, Callable[[], object]]:
    """Each works on all images once."""
    images = [decode(x).image for x in data]
    arrays = [np.array(image) for image in images]
    batches = Batches(data, AUGMENTATION, Plan(Order(len(data), shuffle=False), len(data)))
    views = batches[0]
    ready = [pillow_crops(image, i) for i, image in enumerate(images)]
    drawn = [
        [draw_choices(0, np.array([i]), c, rule) for c, rule in enumerate(AUGMENTATION.rules)] for i in range(len(data))
    ]

    def pillow_colour() -> list[list[torch.Tensor]]:
        return [
            [pillow_altered(x, c) for x, c in zip(xs, cs, strict=True)] for xs, cs in zip(ready, drawn, strict=True)
        ]

    def crops() -> list[list[torch.Tensor]]:
        return [
            [crop for found, size in places(i, *a.shape[:2]) for crop in crop_pixels(a, found, size)]
            for i, a in enumerate(arrays)
        ]

    def at_scale() -> list[object]:
        return [pixels_and_boxes(x, lambda h, w, i=i: places(i, h, w)) for i, x in enumerate(data)]

    return {
        "decode: whole": lambda: [np.array(decode(x).image) for x in data],
        "decode: as large as crops need": at_scale,
        "2 + 8 crops: Pillow": lambda: [[np.asarray(c) for c in pillow_crops(x, i)] for i, x in enumerate(images)],
        "2 + 8 crops: dinokit": crops,
        "colour, blur, normalise: Pillow": pillow_colour,
        "colour, blur, normalise: dinokit": lambda: AUGMENTATION.finish(views),
        "a worker's whole share: dinokit": lambda: batches[0],
    }


def made() -> dict[str, tuple[int, Callable[[], object]]]:
    return {
        "Procedural, 64 px": (128, lambda: Procedural(128, 64).batch(range(128))),
        "Textures, 28 px": (500, lambda: Textures(500).batch(range(500))),
        "ShapeTex, 128 px": (30, lambda: [ShapeTex(30)[i] for i in range(30)]),
    }


def on_device(device: str, rounds: int) -> dict[str, float]:
    """Milliseconds an image of the colour stage, wall clock, batch of 128."""
    b = 128
    views = Views(
        torch.randint(0, 256, (2 * b, 3, 224, 224), dtype=torch.uint8, device=device),
        torch.randint(0, 256, (8 * b, 3, 98, 98), dtype=torch.uint8, device=device),
        torch.arange(b), torch.arange(b),
    )  # fmt: skip
    times = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        AUGMENTATION.finish(views)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start) / b)
    return {"median_ms": statistics.median(times[1:]), "images_per_s": 1e3 / statistics.median(times[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, choices=range(1, 257), metavar="1..256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for label, size in SIZES.items():
        rows = cases(jpegs(arguments.images, size))
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(arguments.rounds):
            for name, run in rows.items():
                start = time.process_time()
                run()
                times[name].append(1e3 * (time.process_time() - start) / arguments.images)
        found[label] = {name: statistics.median(values) for name, values in times.items()}
        print(f"JPEG of {label}, CPU ms an image")
        for name, value in found[label].items():
            print(f"  {name:<36}{value:8.2f}")
    found["made"] = {}
    print("made images, a second and core")
    for name, (count, run) in made().items():
        run()
        start = time.process_time()
        run()
        found["made"][name] = count / (time.process_time() - start)
        print(f"  {name:<36}{found['made'][name]:8.0f}")
    if arguments.device != "cpu":
        found[arguments.device] = on_device(arguments.device, 5)
        print(f"colour, blur, normalise on {torch.cuda.get_device_name()}: {found[arguments.device]}")
    if arguments.out:
        facts = {"hue": AUGMENTATION.first.jitter[HUE], "images": arguments.images, "rounds": arguments.rounds}
        arguments.out.write_text(json.dumps({"settings": facts, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
