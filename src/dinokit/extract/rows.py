"""Images to rows: decoded beside the model, batched by size, one row an input, in the order of the inputs.

Promise: a bad image gives a row that says why and never touches its neighbours; no row is lost or doubled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dinokit.errors import ImageError, ImageErrorCode
from dinokit.images import DEFAULT_MAX_PIXELS, Decoded, ImageTransform, decode
from dinokit.tokens import Pool
from dinokit.weights.load import Pretrained


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one input. `embedding` is float32: (d) for one vector, (n, d) for registers or patches; None on error.

    `width` and `height` are in pixels after EXIF, `mode` and `frames` as in `Decoded`, `notes` what decoding remarked.
    """

    path: str
    status: str = "ok"
    error_code: ImageErrorCode | None = None
    error: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    frames: int | None = None
    notes: tuple[str, ...] = ()
    embedding: Float32[np.ndarray, "..."] | None = None


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How files are decoded; see `dinokit.images.decode`."""

    max_pixels: int = DEFAULT_MAX_PIXELS
    window: tuple[float, float] | None = None
    background: tuple[int, int, int] | None = None


def embed_images(
    pre: Pretrained,
    paths: Iterable[str],
    *,
    pool: Pool = "cls",
    batch_size: int = 8,
    workers: int = 2,
    options: DecodeOptions = DecodeOptions(),
) -> Iterator[Row]:
    """One row for each path, in their order.

    `workers` threads decode ahead of the model, at most two batches; memory does not grow with the number of inputs.
    """
    waiting: list[tuple[Row, Tensor | None]] = []
    for row, pixels in _prepared(pre.transform, paths, options, workers, ahead=2 * batch_size):
        sizes = [other.shape for _, other in waiting if other is not None]
        if pixels is not None and sizes and (pixels.shape != sizes[0] or len(sizes) == batch_size):
            yield from _flush(pre, waiting, pool)
            waiting = []
        waiting.append((row, pixels))
    yield from _flush(pre, waiting, pool)


def _prepared(
    transform: ImageTransform, paths: Iterable[str], options: DecodeOptions, workers: int, ahead: int
) -> Iterator[tuple[Row, Tensor | None]]:
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        queue: deque[Future[tuple[Row, Tensor | None]]] = deque()
        for path in paths:
            queue.append(pool.submit(_prepare, transform, path, options))
            if len(queue) > ahead:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()


def _prepare(transform: ImageTransform, path: str, options: DecodeOptions) -> tuple[Row, Tensor | None]:
    row = Row(path=path)
    try:
        decoded: Decoded = decode(
            path, max_pixels=options.max_pixels, window=options.window, background=options.background
        )
        row = replace(
            row,
            width=decoded.width,
            height=decoded.height,
            mode=decoded.mode,
            frames=decoded.frames,
            notes=decoded.notes,
        )
        return row, transform(decoded)
    except ImageError as error:
        return replace(row, status="error", error_code=error.code, error=str(error)), None


@torch.no_grad()
def _flush(pre: Pretrained, waiting: list[tuple[Row, Tensor | None]], pool: Pool) -> Iterator[Row]:
    good = [pixels for _, pixels in waiting if pixels is not None]
    features: list[np.ndarray] = []
    if good:
        tokens = pre.model(torch.stack(good).to(device=pre.device, dtype=pre.dtype))
        features = list(tokens.pool(pool).float().cpu().numpy())
    found = iter(features)
    for row, pixels in waiting:
        yield row if pixels is None else _with_embedding(row, next(found))


def _with_embedding(row: Row, embedding: np.ndarray) -> Row:
    if np.isfinite(embedding).all():
        return replace(row, embedding=embedding)
    message = f"{row.path}: the model gave NaN or infinite values; use --dtype fp32, or look at the weights."
    return replace(row, status="error", error_code="nonfinite_embedding", error=message)
