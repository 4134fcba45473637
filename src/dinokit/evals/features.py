"""Images to the vectors and token maps that evaluations read; each image goes through the network once.

Promise: rows are in the order of the images; memory is that of the result (or of the disk, with `storage`), plus a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from dinokit.errors import ImageError
from dinokit.images import Exact, ImageTransform
from dinokit.model import intermediate_tokens
from dinokit.tokens import Tokens
from dinokit.weights.load import Pretrained

Watched = Callable[[Iterable[Any]], Iterable[Any]]
CACHE_BYTES = 4 << 30


class Batch(NamedTuple):
    """Numbers of images, and their pixels."""

    numbers: list[int]
    pixels: Float[Tensor, "b 3 h w"]


@dataclass(frozen=True, kw_only=True)
class Features:
    """Vectors of the images that could be read: row i is that of image `kept[i]`. `columns` names the slices that heads read."""

    vectors: Float32[np.ndarray, "m f"]
    kept: tuple[int, ...]
    columns: Mapping[str, slice]
    failed: tuple[tuple[str, str], ...]


def head_columns(embed_dim: int, blocks: int, mean: bool) -> dict[str, slice]:
    """What a vector of `extract_features` holds: class tokens of the last `blocks` blocks, oldest first, and the mean patch.

    With four blocks and the mean these are the four inputs of DINOv2's linear evaluation.
    """
    end, found = blocks * embed_dim, {}
    for count in sorted({1, blocks}):
        words = "1 block" if count == 1 else f"{count} blocks"
        found[f"{words}, cls"] = slice(end - count * embed_dim, end)
        if mean:
            found[f"{words}, cls+mean"] = slice(end - count * embed_dim, end + embed_dim)
    return found


def extract_features(
    pre: Pretrained,
    paths: Sequence[Any],
    *,
    blocks: int = 1,
    mean: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    storage: Path | None = None,
    watched: Watched = iter,
) -> Features:
    """Class tokens of the last `blocks` blocks after the final norm, with `mean` the mean patch of the last behind them.

    `storage` is a .npy file to hold them, for collections larger than memory. Images that can't be read are in `failed`.

    Raises:
        ValueError: more blocks than the network has, or several of a form that changes the last one only.
    """
    width = (blocks + mean) * pre.config.embed_dim
    shape = (len(paths), width)
    if storage is None:
        rows = np.empty(shape, np.float32)
    else:
        rows = np.lib.format.open_memmap(storage, mode="w+", dtype=np.float32, shape=shape)
    kept: list[int] = []
    failed: list[tuple[str, str]] = []
    for batch in batches(pre.transform, watched(paths), batch_size, workers, failed):
        levels = read_tokens(pre, batch.pixels, blocks)
        parts = [level.cls for level in levels] + ([levels[-1].patches.mean(dim=1)] if mean else [])
        rows[len(kept) : len(kept) + len(batch.numbers)] = torch.cat(parts, dim=1).float().cpu().numpy()
        kept += batch.numbers
    assert kept == sorted(kept)
    return Features(
        vectors=rows[: len(kept)],
        kept=tuple(kept),
        columns=head_columns(pre.config.embed_dim, blocks, mean),
        failed=tuple(failed),
    )


@torch.no_grad()
def read_tokens(
    pre: Pretrained, pixels: Float[Tensor, "b 3 h w"], blocks: int | Sequence[int] = 1, *, norm: bool = True
) -> tuple[Tokens, ...]:
    """Tokens after these blocks (see `model.capture.block_indices`), on the model's device.

    Raises:
        ValueError: a block that is not there, or others than the normed last of a form that changes the last one only.
    """
    pixels = pixels.to(device=pre.device, dtype=pre.dtype)
    if blocks == 1 and norm:
        return (pre.model(pixels),)
    if getattr(pre.model, "num_passes", 1) > 1:
        raise ValueError(
            f"{pre.provenance.form} changes the tokens of the last block only; this evaluation reads others. Use another repair, or "
            f"one block."
        )
    return intermediate_tokens(pre.model, pixels, blocks, norm=norm)


def batches(
    transform: ImageTransform,
    sources: Iterable[Any],
    batch_size: int,
    workers: int,
    failed: list[tuple[str, str]],
) -> Iterator[Batch]:
    """Images of one size as they come, decoded ahead by `workers` threads. What can't be read is appended to `failed`."""
    numbers: list[int] = []
    ready: list[Tensor] = []
    for number, source, pixels in _decoded(transform, sources, workers, 2 * batch_size):
        if isinstance(pixels, ImageError):
            failed.append((str(source), f"{pixels.code}: {pixels}"))
            continue
        if ready and (ready[0].shape != pixels.shape or len(ready) == batch_size):
            yield Batch(numbers, torch.stack(ready))
            numbers, ready = [], []
        numbers.append(number)
        ready.append(pixels)
    if ready:
        yield Batch(numbers, torch.stack(ready))


def _decoded(
    transform: ImageTransform, sources: Iterable[Any], workers: int, ahead: int
) -> Iterator[tuple[int, Any, Tensor | ImageError]]:
    def one(source: Any) -> Tensor | ImageError:
        try:
            return transform(source)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        queue: deque[tuple[int, Any, Future[Tensor | ImageError]]] = deque()
        for number, source in enumerate(sources):
            queue.append((number, source, pool.submit(one, source)))
            if len(queue) > ahead:
                first, asked, result = queue.popleft()
                yield first, asked, result.result()
        for first, asked, result in queue:
            yield first, asked, result.result()


def squashed(pre: Pretrained, size: tuple[int, int]) -> ImageTransform:
    """The model's colours, and the whole image squashed to (height, width), so that a place in it is a place in the grid."""
    return replace(pre.transform, resize=Exact(*size), crop=None)


def whole_patches(size: int, patch_size: int) -> int:
    """The multiple of the patch nearest to `size`, at least one patch."""
    return max(round(size / patch_size), 1) * patch_size


class DenseTokens:
    """Patch tokens of images, asked for by number: kept in memory where they fit into `cache_bytes`, else computed each time.

    Images are squashed to `size` x `size` pixels, a multiple of the patch. A token's vector is that of each of `blocks` (the last
    ones, or a list), with `with_cls` each followed by the class token, as DINOv2's depth heads read them.
    """

    def __init__(
        self,
        pre: Pretrained,
        paths: Sequence[str],
        size: int,
        *,
        blocks: int | Sequence[int] = 1,
        with_cls: bool = False,
        norm: bool = True,
        batch_size: int = 8,
        workers: int = 2,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._pre, self._paths, self._blocks, self._with_cls, self._norm = pre, paths, blocks, with_cls, norm
        self._batch_size, self._workers = batch_size, workers
        self.size = whole_patches(size, pre.config.patch_size)
        self.grid = pre.model.grid_of(self.size, self.size)
        levels = blocks if isinstance(blocks, int) else len(blocks)
        self.width = levels * (1 + with_cls) * pre.config.embed_dim
        self._transform = squashed(pre, (self.size, self.size))
        needed = len(paths) * self.grid[0] * self.grid[1] * self.width * 4
        self.cached = needed <= cache_bytes
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._paths)

    def __call__(self, numbers: Sequence[int]) -> Float[Tensor, "b n f"]:
        """Tokens of these images, on the model's device.

        Raises:
            ImageError: one of them can't be read.
        """
        missing = list(dict.fromkeys(i for i in numbers if i not in self._cache))
        found = dict(zip(missing, self._compute(missing), strict=True))
        if self.cached:
            self._cache |= {number: tokens.cpu() for number, tokens in found.items()}
        rows = [found[i] if i in found else self._cache[i].to(self._pre.device) for i in numbers]
        return torch.stack(rows)

    def _compute(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        paths = (self._paths[i] for i in numbers)
        for start in range(0, len(numbers), self._batch_size):
            chunk = numbers[start : start + self._batch_size]
            pixels = []
            for _, _, found in _decoded(self._transform, (next(paths) for _ in chunk), self._workers, len(chunk)):
                if isinstance(found, ImageError):
                    raise found
                pixels.append(found)
            levels = read_tokens(self._pre, torch.stack(pixels), self._blocks, norm=self._norm)
            yield from torch.cat([self._joined(level) for level in levels], dim=-1)

    def _joined(self, tokens: Tokens) -> Tensor:
        patches = tokens.patches.float()
        if not self._with_cls:
            return patches
        return torch.cat([patches, tokens.cls.float()[:, None].expand_as(patches)], dim=-1)
