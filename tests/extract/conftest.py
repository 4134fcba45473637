"""A tiny network as files, a folder of images, and the bytes of what a job wrote."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinokit
from dinokit.atomic import write_json
from dinokit.extract import ExtractJob, JobOptions
from dinokit.weights.load import Pretrained
from tests.images.corpus import saved

TINY_TRANSFORM = {"size": {"shortest_edge": 60}, "crop_size": {"height": 56, "width": 56}}


@pytest.fixture(scope="session")
def model_folder(formats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the hub's layout."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(formats / "reg" / "hf", folder)
    write_json(folder / "preprocessor_config.json", TINY_TRANSFORM)
    return folder


@pytest.fixture(scope="session")
def pre(model_folder: Path) -> Pretrained:
    return dinokit.load(model_folder)


def an_image(seed: int, height: int = 60, width: int = 72, kind: str = "PNG") -> bytes:
    """Blocks of random colour, so that files are small and vectors differ."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return saved(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST), kind)


def fill(folder: Path, count: int, bad: Callable[[int], bool] = lambda i: i % 7 == 3) -> Path:
    """Images in two folders; some of them are text."""
    (folder / "more").mkdir(parents=True)
    for i in range(count):
        path = folder / ("more" if i % 3 == 0 else "") / f"{i:04}.png"
        path.write_bytes(b"no image" if bad(i) else an_image(i))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """23 images, three of which are none."""
    return fill(tmp_path / "photos", 23)


Run = Callable[..., object]


def job(pre: Pretrained, source: object, out: Path, **options: object) -> ExtractJob:
    """A small job in this process."""
    defaults = {"shard_size": 5, "batch_size": 4, "workers": 0}
    return ExtractJob(pre, source, out, options=JobOptions(**defaults | options))  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    """All files of a result whose bytes are promised."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(("_lock", "_plan.lock", "_run.json"))
    }
