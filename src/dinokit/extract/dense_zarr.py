"""Dense features in a Zarr store: one array a kind for the whole job, for those who read parts of what is too large for arrays a shard.

Row `shard * shard_size + i` belongs to row i of a shard; rows without vectors, and those past the end of a short shard, hold zeros. No
chunk is shared by two shards, so ranks never meet. A shard's rows are on disk, synced with the folders that lead to them, before its
table is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinokit.atomic import sync_folder
from dinokit.errors import MissingExtraError, StorageError
from dinokit.extract.plan import Plan, Shard

STORE = "dense.zarr"
CHUNK_ROWS = 64


def need_zarr() -> Any:
    """The zarr package.

    Raises:
        ImportError: it is not installed; says how.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError(
            '--dense-format zarr writes with zarr; pip install "dinokit[zarr]" brings it.'
        ) from error
    return zarr


def prepare(plan: Plan, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Make the arrays, or make them longer; call it under the plan's lock.

    Raises:
        StorageError: the disk refuses.
    """
    rows, size = plan.num_shards * plan.settings.shard_size, plan.settings.shard_size
    chunk = max(divisor for divisor in range(1, min(CHUNK_ROWS, size) + 1) if size % divisor == 0)
    try:
        group = need_zarr().open_group(str(plan.folder / STORE), mode="a")
        for kind, shape in shapes.items():
            if kind not in group:
                group.create_array(
                    kind, shape=(rows, *shape), chunks=(chunk, *shape), dtype=plan.settings.dense_dtype, fill_value=0
                )
            elif group[kind].shape[0] < rows:
                group[kind].resize((rows, *shape))
        store = plan.folder / STORE
        _sync(store, [store / "zarr.json", *(store / kind / "zarr.json" for kind in shapes)])
    except OSError as error:
        raise StorageError(f"{plan.folder / STORE} can't be written: {error.strerror or error}.") from error


class DenseZarr:
    """The rows of one shard. Rows of before stay where they are, so a retry adds only its own."""

    def __init__(self, plan: Plan, shard: Shard, kinds: tuple[str, ...]) -> None:
        self.names = {kind: f"{STORE}/{kind}" for kind in kinds}
        group = need_zarr().open_group(str(plan.folder / STORE), mode="r+")
        self._arrays = {kind: group[kind] for kind in kinds}
        self._first = shard.index * plan.settings.shard_size
        self._folder = plan.folder
        self._waiting: list[tuple[int, Mapping[str, np.ndarray]]] = []
        self._written: set[int] = set()  # chunks

    def add(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        """The next image that has vectors.

        Raises:
            StorageError: the disk refuses.
        """
        chunk = next(iter(self._arrays.values())).chunks[0]
        if self._waiting and self._waiting[0][0] // chunk != row // chunk:
            self._write()
        self._waiting.append((row, arrays))

    def commit(self) -> None:
        """Write what is left, and have all of it on disk.

        Raises:
            StorageError: the disk refuses.
        """
        self._write()
        try:
            _sync(self._folder / STORE, (self._file(kind, chunk) for kind in self._arrays for chunk in self._written))
        except OSError as error:
            raise StorageError(f"{self._folder / STORE} can't be written: {error.strerror or error}.") from error

    def abort(self) -> None:
        """What was written is written again by the next run."""
        self._waiting = []

    def _file(self, kind: str, chunk: int) -> Path:
        """Where a chunk is; one that holds nothing but zeros is no file."""
        array = self._arrays[kind]
        name = array.metadata.encode_chunk_key((chunk, *(0 for _ in array.shape[1:])))
        return self._folder / STORE / kind / str(name)

    def _write(self) -> None:
        if not self._waiting:
            return
        first, last = self._waiting[0][0], self._waiting[-1][0]
        try:
            for kind, array in self._arrays.items():
                part = array[self._first + first : self._first + last + 1]
                for row, arrays in self._waiting:
                    part[row - first] = arrays[kind]
                array[self._first + first : self._first + last + 1] = part
            self._written.add((self._first + first) // array.chunks[0])
        except OSError as error:
            raise StorageError(f"{self._folder / STORE} can't be written: {error.strerror or error}.") from error
        self._waiting = []


def _sync(store: Path, files: Iterable[Path]) -> None:
    """Make these files last through a loss of power, and the folders from each up to the one that holds the store."""
    folders = {store.parent}
    for path in files:
        if path.exists():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
            folders.update(folder for folder in path.parents if folder.is_relative_to(store))
    for folder in sorted(folders, reverse=True):
        sync_folder(folder)
