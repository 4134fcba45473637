"""Dense features: all patches, registers or tokens of every image, one `.npy` a shard and kind, beside the shard's table.

Row i of an array belongs to the i-th row of its table whose status is ok; the table's footer names the array. The array is in place
before the table is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

import numpy as np

from dinokit.atomic import sync_folder
from dinokit.errors import OutputError, StorageError
from dinokit.extract.plan import Plan, Shard
from dinokit.weights.load import Pretrained

Format = Literal["npy", "zarr"]
KINDS = ("patches", "registers", "tokens")
HEADER_BYTES = 128
SHARE_OF_DISK = 0.9
SOON = (
    1 << 26
)  # bytes after which the system is asked to begin writing them to disk, so that fsync at the end has little left


def tokens_of(pre: Pretrained, kind: str) -> int:
    """How many tokens of a kind an image has.

    Raises:
        ValueError: images differ in size, or the network has no registers.
    """
    transform = pre.transform
    height, width = transform.output_size(1, 1)
    if transform.crop is None and transform.output_size(1, 2) != (height, width):
        raise ValueError("dense features need one size for all images; set --image-size.")
    rows, columns = pre.model.grid_of(height, width)
    registers = pre.config.num_register_tokens
    if kind == "registers" and not registers:
        raise ValueError(f"{pre.provenance.name} has no registers.")
    return {"patches": rows * columns, "registers": registers, "tokens": 1 + registers + rows * columns}[kind]


def forecast(pre: Pretrained, kinds: Sequence[str], dtype: str, rows: int) -> int:
    """Bytes that dense features of so many images take."""
    each = sum(tokens_of(pre, kind) for kind in kinds) * pre.config.embed_dim * np.dtype(dtype).itemsize
    return each * rows


def require_room(folder: Path, wanted: int) -> None:
    """Refuse what would fill the disk.

    Raises:
        OutputError: more than nine tenths of what is free.
    """
    free = shutil.disk_usage(folder).free
    if wanted > SHARE_OF_DISK * free:
        raise OutputError(
            f"dense features would take {wanted / 1e9:,.1f} GB in {folder}, and {free / 1e9:,.1f} GB are free (nine tenths may be "
            f"used). Choose --dense registers, a smaller --image-size, or another disk."
        )


class DenseShard:
    """The arrays of one shard while they grow. Memory is one image's; nothing is seen under its name before `commit`.

    Raises:
        StorageError: the disk refuses; nothing is left.
    """

    def __init__(self, plan: Plan, shard: Shard, shapes: Mapping[str, tuple[int, int]], attempt: int = 0) -> None:
        self.plan, self.shapes, self.rows, self._fresh = plan, dict(shapes), 0, 0
        again = f"-{attempt}" if attempt else ""
        self.names = {kind: f"{kind}-{shard.index:08d}{again}.npy" for kind in shapes}
        self._files: dict[str, IO[bytes]] = {}
        self._paths: dict[str, Path] = {}
        try:
            for kind, name in self.names.items():
                handle, path = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=plan.folder)
                self._paths[kind] = Path(path)
                self._files[kind] = os.fdopen(handle, "wb")
                self._files[kind].write(b"\0" * HEADER_BYTES)
        except OSError as error:
            self.abort()
            raise StorageError(f"{plan.folder} can't be written to: {error.strerror or error}.") from error

    def add(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:  # noqa: ARG002 - as of `DenseZarr`
        """The next image that has vectors."""
        try:
            for kind, file in self._files.items():
                self._fresh += file.write(np.ascontiguousarray(arrays[kind], self.plan.settings.dense_dtype).tobytes())
            if self._fresh >= SOON and hasattr(os, "posix_fadvise"):
                self._fresh = 0
                for file in self._files.values():
                    file.flush()
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            self.abort()
            raise StorageError(f"{self.plan.folder} can't be written to: {error.strerror or error}.") from error
        self.rows += 1

    def commit(self) -> None:
        """Into place: header, fsync, rename."""
        try:
            for kind, file in self._files.items():
                file.seek(0)
                file.write(self._header(kind))
                file.flush()
                os.fsync(file.fileno())
                file.close()
                self._paths[kind].replace(self.plan.folder / self.names[kind])
            sync_folder(self.plan.folder)
        except OSError as error:
            self.abort()
            raise StorageError(f"{self.plan.folder} can't be written to: {error.strerror or error}.") from error

    def _header(self, kind: str) -> bytes:
        """Of version 1 of the format, padded to a fixed length, so that it can be written last."""
        dtype = np.lib.format.dtype_to_descr(np.dtype(self.plan.settings.dense_dtype))
        text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {(self.rows, *self.shapes[kind])}, }}"
        start = np.lib.format.magic(1, 0) + (HEADER_BYTES - 10).to_bytes(2, "little")
        return start + text.ljust(HEADER_BYTES - 11).encode() + b"\n"

    def abort(self) -> None:
        """Leave nothing."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        for path in self._paths.values():
            path.unlink(missing_ok=True)
