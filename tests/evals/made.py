"""Data sets made up for tests: small folders in the layouts that people have, whose answers the planted model's tokens hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import dinokit
from dinokit.analysis.planted import planted, planted_image
from dinokit.weights.load import Provenance

GRID, EDGE = (4, 4), 16


def planted_checkpoint(folder: Path) -> Path:
    """The planted model as files; 16 x 16 pixels, colours in [0, 1], patch tokens that say which pixel of a patch is green."""
    config, weights = planted()
    network = dinokit.VisionTransformer(config).eval()
    network.load_state_dict(weights)
    transform = replace(dinokit.ImageTransform.squash(EDGE), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    provenance = Provenance(name="planted", path=folder, files=(), layout="hf")
    pre = dinokit.Pretrained(model=network, transform=transform, provenance=provenance)
    return dinokit.save(pre, folder, "timm")


def write_image(path: Path, codes: Sequence[int], outliers: Sequence[int] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (255 * planted_image(outliers, codes=codes)[0].permute(1, 2, 0)).numpy().astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_numbers(path: Path, numbers: np.ndarray, *, wide: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers.astype(np.uint16 if wide else np.uint8)).save(path)


COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def write_colour(path: Path, colour: Sequence[int], seed: int = 0) -> None:
    """A colour with noise, 90 x 80 pixels: what even a network that learned nothing tells apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-30, 30, (90, 80, 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)


def class_folders(root: Path, sizes: tuple[int, int] = (6, 3)) -> Path:
    """Classes a, b, c of one colour each, in train/ and val/."""
    for split, num in zip(("train", "val"), sizes, strict=True):
        for name, colour in zip("abc", COLOURS, strict=True):
            for i in range(num):
                write_colour(root / split / name / f"{i}.png", colour, seed=i)
    return root


def random_codes(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 16, 16).tolist()


def mask_folders(
    root: Path,
    label: Callable[[int], int],
    layout: Callable[[str, str], tuple[str, str]],
    *,
    num: tuple[int, int] = (12, 4),
    splits: tuple[str, str] = ("train", "val"),
    suffixes: tuple[str, str] = (".png", ".png"),
) -> Path:
    """Images of random codes, and masks of 4 x 4 pixels in which a patch's code says the class; `layout` gives the two folders."""
    for part, (split, count) in enumerate(zip(splits, num, strict=True)):
        for i in range(count):
            codes = random_codes(100 * part + i)
            image, mask = layout(split, f"{split}{i}")
            write_image(root / f"{image}{suffixes[0]}", codes)
            write_numbers(root / f"{mask}{suffixes[1]}", np.array([label(code) for code in codes]).reshape(GRID))
    return root


def plain(split: str, name: str) -> tuple[str, str]:
    return f"{split}/images/{name}", f"{split}/masks/{name}"


def depth_folders(root: Path) -> Path:
    """One code an image; depth 1 + code / 2 metres everywhere, in millimetres; one pixel of each map is unknown."""
    for split, codes in (("train", range(8)), ("val", (1, 4, 6))):
        for code in codes:
            depth = np.full((8, 8), 1000 + 500 * code)
            depth[0, 0] = 0
            write_image(root / split / "images" / f"{code}.png", [code] * 16)
            write_numbers(root / split / "depth" / f"{code}.png", depth, wide=True)
    return root


def davis_folder(root: Path, num_frames: int = 5) -> Path:
    """A square of 2 x 2 patches (code 3) that goes right and down and back, a patch a frame, before a varied background."""
    background = [4 + (i * 5) % 12 for i in range(16)]
    for t in range(num_frames):
        top = left = (0, 1, 2, 1, 0)[t % 5]
        codes, mask = list(background), np.zeros((16, 16), np.uint8)
        for row in (top, top + 1):
            for column in (left, left + 1):
                codes[4 * row + column] = 3
        mask[4 * top : 4 * top + 8, 4 * left : 4 * left + 8] = 1
        write_image(root / "JPEGImages" / "480p" / "square" / f"{t:05}.png", codes)
        write_numbers(root / "Annotations" / "480p" / "square" / f"{t:05}.png", mask)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("square\n")
    return root


def spair_folder(root: Path) -> Path:
    """Two images whose 16 patches all differ, the second mirrored; points at patch centres, (x, y) as they are written."""
    codes = np.arange(16).reshape(GRID)
    for name, shown in (("one", codes), ("two", codes[:, ::-1])):
        write_image(root / "JPEGImages" / "thing" / f"{name}.png", shown.ravel().tolist())
    pair = {
        "src_imname": "one.png", "trg_imname": "two.png", "category": "thing",
        "src_kps": [[2, 2], [6, 10]], "trg_kps": [[14, 2], [10, 10]], "trg_bndbox": [0, 0, 16, 16],
    }  # fmt: skip
    folder = root / "PairAnnotation" / "test"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text(json.dumps(pair))
    return root
