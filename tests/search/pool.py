"""A pool, queries and an evaluation set for the commands that read collections; the images lie beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.search.made import a_collection
from tests.search.test_dedup import turned

SIZES = (20, 10, 4)  # of three clusters
DIM = 16


def make(folder: Path) -> Path:
    """Collections `pool`, `queries` (5 near the first cluster, 1 near the second) and `exam` (one image of the pool).

    The pool: 34 images in three clusters, then two copies and one far from all.
    """
    rng = np.random.default_rng(0)
    axes = np.eye(DIM)
    vectors = [turned(axes[c], 0.9, rng) for c, size in enumerate(SIZES) for _ in range(size)]
    vectors += [vectors[0], vectors[25], axes[15]]
    ids = [f"c{c}-{i}.png" for c, size in enumerate(SIZES) for i in range(size)] + [
        "copy-0.png",
        "copy-25.png",
        "far.png",
    ]
    photos = folder / "photos"
    photos.mkdir()
    for i, name in enumerate(ids):
        Image.new("RGB", (30 + i, 24), (7 * i % 256, 90, 255 - 6 * i)).save(photos / name)
    facts = {
        "path": [str(photos / name) for name in ids],
        "width": [30 + i for i in range(len(ids))],
        "height": [24] * len(ids),
        "sha256": [f"s{i}" for i in range(len(ids) - 3)] + ["s0", "new", "far"],
    }
    a_collection(folder / "pool", np.array(vectors, np.float32), parts=2, ids=ids, facts=facts)
    near = [turned(axes[0], 0.97, rng) for _ in range(5)] + [turned(axes[1], 0.97, rng)]
    a_collection(folder / "queries", np.array(near, np.float32), ids=[f"q{i}" for i in range(6)])
    exam = [turned(vectors[7], 0.999, rng), axes[12]]
    a_collection(folder / "exam", np.array(exam, np.float32), ids=["e0.png", "e1.png"])
    return folder
