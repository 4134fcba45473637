"""Where vectors come from: a collection on disk, an array, a scratch file; all read in blocks of bounded memory.

Promise: float32 in the order of the collection; `held` gives random access with at most `memory` bytes in use, the rest in a scratch
file that disappears.
"""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64

from dinokit.errors import StorageError
from dinokit.store import FeatureSet

BLOCK_ROWS = 16_384
MEMORY = 1 << 30
UNIT_ERROR = 1e-5  # how far from 1 a length may be that counts as 1
Array = Float32[np.ndarray, "n d"]
T = TypeVar("T")


@runtime_checkable
class Vectors(Protocol):
    """Vectors that can be read from first to last. `unit`: all are known to have length 1."""

    dim: int
    unit: bool

    def __len__(self) -> int: ...

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Array]]:
        """(Number of the first, vectors), at most `rows` at a time."""
        ...


@runtime_checkable
class Held(Vectors, Protocol):
    """Vectors that can be read anywhere, as often as one likes."""

    def read(self, start: int, stop: int) -> Array:
        """The vectors number `start` to `stop` - 1."""
        ...

    def take(self, numbers: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """The vectors of these numbers, in this order."""
        ...


class Stored:
    """The vectors of a collection on disk, in one pass; the next block is read while one is worked on."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.dim = features.dim
        self.unit = features.feature.normalized and features.feature.dtype == "float32"

    def __len__(self) -> int:
        """How many there are."""
        return len(self.features)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Array]]:
        """As `Vectors.blocks`; never more than three blocks in memory. Those of small files come together."""
        return ahead(_regrouped(((block.start, block.vectors) for block in self.features.blocks(rows)), rows))


class InMemory:
    """The rows of an array."""

    def __init__(self, array: Array, *, unit: bool = False) -> None:
        self.array, self.unit = array, unit
        self.dim = int(array.shape[1])

    def __len__(self) -> int:
        """How many there are."""
        return len(self.array)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Array]]:
        """Views of the array."""
        for start in range(0, len(self.array), rows):
            yield start, self.array[start : start + rows]

    def read(self, start: int, stop: int) -> Array:
        """A view."""
        return self.array[start:stop]

    def take(self, numbers: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """A copy of these rows."""
        rows: Array = self.array[numbers]
        return rows


class Scratch:
    """Float32 rows one after another in a file, read as they are asked for."""

    def __init__(self, path: Path, count: int, dim: int, *, unit: bool) -> None:
        self.path, self.count, self.dim, self.unit = path, count, dim, unit

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Array]]:
        """As `Vectors.blocks`; the next block is read while one is worked on."""
        return ahead((start, self.read(start, min(start + rows, self.count))) for start in range(0, self.count, rows))

    def read(self, start: int, stop: int) -> Array:
        """Read from the file."""
        count = (stop - start) * self.dim
        return np.fromfile(self.path, np.float32, count, offset=4 * start * self.dim).reshape(-1, self.dim)

    def take(self, numbers: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """Through a map of the file, of which only these pages are read."""
        rows = np.memmap(self.path, np.float32, "r", shape=(self.count, self.dim))
        return np.array(rows[numbers])


class Chosen:
    """Some of the vectors, counted anew from 0."""

    def __init__(self, vectors: Held, numbers: Int64[np.ndarray, " m"]) -> None:
        self.vectors, self.numbers = vectors, numbers
        self.dim, self.unit = vectors.dim, vectors.unit

    def __len__(self) -> int:
        """How many were chosen."""
        return len(self.numbers)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, Array]]:
        """As `Vectors.blocks`."""
        for start in range(0, len(self), rows):
            yield start, self.read(start, start + rows)

    def read(self, start: int, stop: int) -> Array:
        """A copy."""
        return self.vectors.take(self.numbers[start:stop])

    def take(self, numbers: Int64[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """A copy of these."""
        return self.vectors.take(self.numbers[numbers])


Source = FeatureSet | np.ndarray | torch.Tensor | Vectors


def as_vectors(source: Source) -> Vectors:
    """A collection, an array or a tensor (n, d) as vectors.

    Raises:
        ValueError: the array has no two dimensions, or holds NaN or infinite values.
    """
    if isinstance(source, FeatureSet):
        return Stored(source)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return InMemory(as_array(source))
    return source


def as_array(values: Any) -> Array:
    """Contiguous float32 of (n, d), without a copy where it is that already.

    Raises:
        ValueError: another shape, or NaN or infinite values.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    array = np.ascontiguousarray(values, np.float32)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"vectors are an array (n, d); this one has shape {array.shape}.")
    for start in range(0, len(array), BLOCK_ROWS):
        if not np.isfinite(array[start : start + BLOCK_ROWS]).all():
            raise ValueError(f"among vectors {start} and the following {BLOCK_ROWS} there are NaN or infinite values.")
    return array


def tensor_of(block: Array) -> torch.Tensor:
    """The same memory as a tensor that nobody writes to; `block` must outlive it.

    PyTorch warns of arrays that can't be written, which is what a Parquet file's are, and a copy would cost as much as reading them.
    """
    if not block.flags.writeable:
        block = np.ctypeslib.as_array(ctypes.cast(block.ctypes.data, ctypes.POINTER(ctypes.c_float)), block.shape)
    return torch.from_numpy(block)


def lengths(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, " n"]:
    """L2 norms."""
    norms: Float32[np.ndarray, " n"] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return norms


def to_unit(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """The same directions with length 1; a zero vector stays zero."""
    unit: Array = vectors / np.maximum(lengths(vectors), np.finfo(np.float32).tiny)[:, None]
    return unit


@contextlib.contextmanager
def held(source: Source, *, unit: bool = False, memory: int = MEMORY) -> Iterator[Held]:
    """Random access to vectors, as float32, with `unit` of length 1.

    At most `memory` bytes of them are kept in memory; more go to a scratch file in the system's temporary folder (`TMPDIR`), removed
    afterwards.

    Raises:
        StorageError: no room for the scratch file.
    """
    vectors = as_vectors(source)
    convert = unit and not vectors.unit
    if isinstance(vectors, (InMemory, Scratch, Chosen)) and not convert:
        yield vectors
        return
    count, dim = len(vectors), vectors.dim
    if 4 * count * dim <= memory:
        array = np.empty((count, dim), np.float32)
        for start, block in vectors.blocks():
            array[start : start + len(block)] = to_unit(block) if convert else block
        yield InMemory(array, unit=unit or vectors.unit)
        return
    with tempfile.TemporaryDirectory(prefix="dinokit-") as folder:
        path = Path(folder) / "vectors"
        try:
            with path.open("wb") as file:
                for _, block in vectors.blocks():
                    (to_unit(block) if convert else block).tofile(file)
        except OSError as error:
            raise StorageError(
                f"{path} can't be written ({error.strerror or error}): {4 * count * dim:,} bytes of scratch space are needed. "
                f"Set TMPDIR to a larger disk."
            ) from error
        yield Scratch(path, count, dim, unit=unit or vectors.unit)


def _regrouped(blocks: Iterable[tuple[int, Array]], rows: int) -> Iterator[tuple[int, Array]]:
    """Consecutive blocks joined as long as they have at most `rows` vectors together."""
    waiting: list[tuple[int, Array]] = []
    count = 0
    for start, block in blocks:
        if waiting and count + len(block) > rows:
            yield _joined(waiting)
            waiting, count = [], 0
        waiting.append((start, block))
        count += len(block)
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[tuple[int, np.ndarray]]) -> tuple[int, np.ndarray]:
    return blocks[0] if len(blocks) == 1 else (blocks[0][0], np.concatenate([block for _, block in blocks]))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items, the next one made in a thread while one is in use."""
    source = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, source, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, source, end)
            yield item  # type: ignore[misc]
