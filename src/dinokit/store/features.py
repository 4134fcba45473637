"""`FeatureSet`: a collection of vectors on disk, opened without reading it, read in blocks of bounded memory.

Promise: rows keep their order; vectors of different identity are refused; only rows with a vector are numbered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dinokit.errors import IdentityError, StorageError
from dinokit.store.identity import Feature, Identity
from dinokit.store.schema import need_pyarrow, read_identity

PART_PATTERN = "part-*.parquet"
BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Block:
    """Consecutive vectors: number `start` and the following ones of the collection."""

    start: int
    ids: Sequence[str]
    vectors: Float32[np.ndarray, "n d"]


class FeatureSet:
    """The vectors of one column of a collection: a folder of `part-*.parquet`, one Parquet file, or a list of files.

    Raises:
        StorageError: nothing there, or a file is damaged.
        IdentityError: a file does not say what made its vectors, or files differ in it.
        KeyError: there is no such column.
    """

    def __init__(self, source: str | Path | Sequence[str | Path], column: str | None = None) -> None:
        self.files = _files(source)
        self.identity: Identity = read_identity(_open(self.files[0]).schema_arrow, str(self.files[0]))
        self.feature: Feature = self.identity.feature(column)
        self.compat_id: str = self.identity.compat_id(self.feature)
        for path in self.files[1:]:
            other = read_identity(_open(path).schema_arrow, str(path))
            self._require(other.compat_id(other.feature(self.feature.column)), str(path))
        # rows with a vector, file by file
        self._counts = [_count_vectors(path, self.feature.column) for path in self.files]

    def __len__(self) -> int:
        """How many vectors there are."""
        return sum(self._counts)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.feature.dim

    @property
    def num_rows(self) -> int:
        """How many inputs there were, with a vector or without."""
        return sum(_open(path).metadata.num_rows for path in self.files)

    def require_same(self, other: FeatureSet) -> None:
        """Refuse vectors that can't be compared with these.

        Raises:
            IdentityError: another model, preprocessing, block or pooling made them.
        """
        self._require(other.compat_id, str(other.files[0].parent))

    def _require(self, compat_id: str, source: str) -> None:
        if compat_id != self.compat_id:
            raise IdentityError(
                f"{source} holds vectors of another kind (compat_id {compat_id}) than {self.files[0].parent} "
                f"({self.compat_id}): another model, preprocessing, block or pooling made them, so distances between them mean "
                f"nothing. Embed both with one model and one set of options."
            )

    def blocks(self, rows: int = BLOCK_ROWS, *, normalize: bool = False) -> Iterator[Block]:
        """All vectors in order, at most `rows` at a time, as float32; `normalize` gives them length 1."""
        start = 0
        for path in self.files:
            for batch in _open(path).iter_batches(batch_size=rows, columns=["id", self.feature.column]):
                vectors = batch.column(1)
                kept = vectors.is_valid()
                ids = batch.column(0).filter(kept).to_pylist()
                if not ids:
                    continue
                found = _dense(vectors.filter(kept), self.dim)
                yield Block(start, ids, _unit(found) if normalize else found)
                start += len(ids)

    def vectors(self, *, normalize: bool = False) -> Float32[np.ndarray, "n d"]:
        """All vectors at once: num_vectors x dim x 4 bytes."""
        out = np.empty((len(self), self.dim), np.float32)
        for block in self.blocks(normalize=normalize):
            out[block.start : block.start + len(block.ids)] = block.vectors
        return out

    def ids(self) -> list[str]:
        """The id of each vector, in order."""
        return [name for block in self._columns(["id"]) for name in block["id"]]

    def rows(
        self, numbers: Iterable[int], columns: Sequence[str] = ("id", "path", "width", "height")
    ) -> list[dict[str, Any]]:
        """These columns of the rows of the given vectors (by number), in the order asked for.

        Raises:
            IndexError: there is no such vector.
        """
        wanted = list(numbers)
        if wanted and not (min(wanted) >= 0 and max(wanted) < len(self)):
            raise IndexError(f"vectors are numbered 0 to {len(self) - 1}; {max(wanted)} was asked for.")
        ends = np.cumsum(self._counts)
        found: dict[int, dict[str, Any]] = {}
        for index in np.unique(np.searchsorted(ends, np.asarray(wanted, np.int64), side="right")):
            first = int(ends[index]) - self._counts[index]
            # the lengths say which rows have a vector, without reading the vectors
            table = _open(self.files[index]).read(columns=[*columns, self.feature.norm_column])
            kept = table.filter(table.column(self.feature.norm_column).combine_chunks().is_valid()).select(
                list(columns)
            )
            for number in {n for n in wanted if first <= n < ends[index]}:
                found[number] = kept.slice(number - first, 1).to_pylist()[0]
        return [found[number] for number in wanted]

    def _columns(self, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
        for path in self.files:
            for batch in _open(path).iter_batches(batch_size=BLOCK_ROWS, columns=[*columns, self.feature.norm_column]):
                yield batch.filter(batch.column(len(columns)).is_valid()).select(columns).to_pydict()


def _files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(source, (str, Path)):
        found = [path for part in source for path in _files(part)]
    else:
        path = Path(source)
        found = sorted(path.glob(PART_PATTERN)) if path.is_dir() else [path]
    if not found:
        raise StorageError(f"{source} holds no {PART_PATTERN}; `dinokit embed SOURCE --out {source}` makes them.")
    return found


def _open(path: Path) -> Any:
    pa = need_pyarrow()
    try:
        return pa.parquet.ParquetFile(path)
    except FileNotFoundError as error:
        raise StorageError(f"{path} does not exist.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{path} is no Parquet file, or damaged: {error}") from error


def _count_vectors(path: Path, column: str) -> int:
    """Rows of a file that have a vector: from the statistics of its lengths' column, without reading."""
    file = _open(path)
    feature = read_identity(file.schema_arrow, str(path)).feature(column)
    index = file.schema_arrow.get_field_index(feature.norm_column)
    name = file.schema_arrow.field(index).name
    places = [i for i in range(len(file.schema)) if file.schema.column(i).path == name]
    metadata, total = file.metadata, 0
    for group in range(metadata.num_row_groups):
        part = metadata.row_group(group).column(places[0])
        if part.statistics is None:
            return sum(batch.num_rows - batch.column(0).null_count for batch in file.iter_batches(columns=[name]))
        total += part.statistics.num_values
    return total


def _dense(column: Any, dim: int) -> Float32[np.ndarray, "n d"]:
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(-1, dim)


def _unit(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32[np.ndarray, "n d"] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
