"""`embed_batch`: bytes of images to vectors in one call, for engines that bring their own rows (Spark, Daft, Dask, Ray)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dinokit.extract.forward import Forward
from dinokit.extract.job import features_of
from dinokit.extract.options import BATCH_SIZES
from dinokit.extract.prepare import How
from dinokit.extract.threads import Threads
from dinokit.extract.where import Blob
from dinokit.images import ExactPreparation, FastTransform
from dinokit.weights.load import Pretrained, load


def embed_batch(
    images: Sequence[bytes | None],
    model: Pretrained | str | Path,
    *,
    pool: str = "cls",
    block: int | None = None,
    normalize: bool = True,
    exact: bool = False,
    batch_size: int | None = None,
) -> Float32[np.ndarray, "n d"]:
    """One vector an image, in order; NaN for those that can't be used (None, damaged, no image).

    A model's name is loaded once a process, on its fastest device. Batches are filled up to `batch_size`, so a vector does not depend
    on what else is in `images`.
    """
    pre = model if isinstance(model, Pretrained) else _loaded(str(model))
    (feature,) = features_of(pre, [pool], [block], normalized=normalize)
    slots = batch_size or BATCH_SIZES.get(pre.device.type, 8)
    preparation = ExactPreparation(pre.transform) if exact else FastTransform(pre.transform)
    forward, how = Forward(pre, preparation, [feature], slots), How(preparation=preparation, hash=False)
    out = np.full((len(images), feature.dim), np.nan, np.float32)
    names = [f"image {index}" for index in range(len(images))]
    with Threads(how) as threads:
        blobs = (Blob(name, image) for name, image in zip(names, images, strict=True))
        ready = threads.map(blobs, 2 * slots)
        for start in range(0, len(images), slots):
            chunk = [next(ready) for _ in names[start : start + slots]]
            for place, answer in enumerate(forward(chunk, names[start : start + slots]), start):
                if answer is not None and answer.ok:
                    out[place] = answer.vectors[feature.column]
    return out


@functools.lru_cache(maxsize=2)
def _loaded(name: str) -> Pretrained:
    import torch

    return load(name, device="cuda" if torch.cuda.is_available() else "cpu")
