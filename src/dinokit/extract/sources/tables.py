"""Tables that hold images themselves: Parquet, Hugging Face datasets on disk (Arrow files), Lance.

An image is a binary cell, or a struct of `bytes` and `path` as the datasets library writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinokit.errors import MissingExtraError, StorageError
from dinokit.extract.sources.listing import Container, Entry, as_text, stamp
from dinokit.store.schema import need_pyarrow

ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class Table:
    """The images of tables of one kind that belong together. Ids are row numbers throughout, or the cells of `id_column`."""

    kind: str
    files: tuple[str, ...]
    image_column: str | None = None
    id_column: str | None = None
    name: str = ""

    def entries(self) -> Iterator[Entry]:
        """Row by row, file by file.

        Raises:
            StorageError: damaged, or without the column.
        """
        number = 0
        for path in self.files:
            with opened(self.kind, path) as table:
                column = table.image_column(self.image_column)
                container = Container.of(self.kind, path, column)
                for row, (given, link) in enumerate(table.index(column, self.id_column)):
                    name = str(number) if given is None else as_text(given)
                    number += 1
                    if link is not None:  # the bytes are not here but in a file of this path
                        yield Entry(name, link, None, 0, *stamp(link))
                    else:
                        yield Entry(name, f"{path}#{row}", container, row, -1, container.mtime_ns)


def hugging_face(folder: str) -> list[tuple[str, tuple[str, ...]]] | None:
    """(Name, files) of each split in a folder of `save_to_disk`; None if it is no such folder."""
    path = Path(folder)
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        return [(split, files) for split in splits for _, files in hugging_face(str(path / split)) or []]
    if not (path / "state.json").is_file():
        return None
    files = json.loads((path / "state.json").read_text()).get("_data_files", [])
    return [(path.name, tuple(str(path / file["filename"]) for file in files))]


def opened(kind: str, path: str) -> Opened:
    """A table for reading.

    Raises:
        StorageError: damaged or not there.
        ImportError: Lance is not installed.
    """
    kinds = {"parquet": ParquetTable, "arrow": ArrowTable, "lance": LanceTable}
    pa = need_pyarrow()
    try:
        return kinds[kind](path)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{path} can't be read as {kind}: {error}") from error


class Opened:
    """One file. Rows are asked for mostly in their order, and then each is read once."""

    def __init__(self, path: str, schema: Any, rows: int) -> None:
        self.path, self.schema, self.rows = path, schema, rows
        self._start = 0
        self._batch: Any = None

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""

    def batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
        """(Number of the first row, rows), from row `start` on or a little before."""
        raise NotImplementedError

    def image_column(self, wanted: str | None) -> str:
        """The column of images: the one named, else the only one that looks like it.

        Raises:
            StorageError: there is none, or several.
        """
        pa = need_pyarrow()
        fields = {field.name: field.type for field in self.schema}
        if wanted is not None:
            if wanted not in fields:
                raise StorageError(f"{self.path} has no column {wanted!r}; it has {', '.join(fields)}.")
            return wanted
        structs = [n for n, t in fields.items() if pa.types.is_struct(t) and t.get_field_index("bytes") >= 0]
        plain = [n for n, t in fields.items() if pa.types.is_binary(t) or pa.types.is_large_binary(t)]
        found = structs or plain
        if len(found) != 1:
            what = "no column looks like images" if not found else f"several columns may be images ({', '.join(found)})"
            raise StorageError(
                f"{self.path}: {what}; its columns are {', '.join(fields)}. Name one with --image-column, or --path-column for paths."
            )
        return str(found[0])

    def index(self, column: str, id_column: str | None) -> Iterator[tuple[Any, str | None]]:
        """(Id or None, path of a file if the image is none of these bytes) of each row, without reading the images."""
        pa = need_pyarrow()
        if id_column is not None and id_column not in self.schema.names:
            raise StorageError(f"{self.path} has no column {id_column!r}; it has {', '.join(self.schema.names)}.")
        linked = pa.types.is_struct(self.schema.field(column).type) and self._has_links(column)
        wanted = [*([id_column] if id_column else []), *([column] if linked else [])]
        if not wanted:
            yield from ((None, None) for _ in range(self.rows))
            return
        for _, batch in self.batches(0, wanted):
            ids = batch.column(id_column).to_pylist() if id_column else [None] * batch.num_rows
            links: list[str | None] = [None] * batch.num_rows
            if linked:
                images = batch.column(column)
                absent = images.field("bytes").is_null().to_pylist()
                names = images.field("path").to_pylist()
                links = [name if gone and name else None for gone, name in zip(absent, names, strict=True)]
            yield from zip(ids, links, strict=True)

    def _has_links(self, column: str) -> bool:
        """Whether the first image is a path instead of bytes; datasets are all one or all the other."""
        kind = self.schema.field(column).type
        if kind.get_field_index("path") < 0:
            return False
        for _, batch in self.batches(0, [column]):
            return bool(batch.num_rows) and not batch.column(column)[0]["bytes"].is_valid
        return False

    def read(self, row: int, column: str) -> bytes | None:
        """The bytes of one image; None for an empty cell."""
        if self._batch is None or not self._start <= row < self._start + self._batch.num_rows:
            if self._batch is None or row != self._start + self._batch.num_rows:
                self._reader = self.batches(row, [column])
            self._start, self._batch = next(self._reader)
            while row >= self._start + self._batch.num_rows:
                self._start, self._batch = next(self._reader)
        cell = self._batch.column(column)[row - self._start].as_py()
        found: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
        return found


class ParquetTable(Opened):
    """A Parquet file; of a row group at most a few rows are in memory."""

    def __init__(self, path: str) -> None:
        self.file = need_pyarrow().parquet.ParquetFile(path, memory_map=False)
        super().__init__(path, self.file.schema_arrow, self.file.metadata.num_rows)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
        """From the row group that holds `start`."""
        first = 0
        for group in range(self.file.num_row_groups):
            rows = self.file.metadata.row_group(group).num_rows
            if first + rows > start:
                place = first
                for batch in self.file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=columns):
                    if place + batch.num_rows > start:
                        yield place, batch
                    place += batch.num_rows
            first += rows


class ArrowTable(Opened):
    """An Arrow file or stream, mapped into memory and never copied as a whole."""

    def __init__(self, path: str) -> None:
        pa = need_pyarrow()
        self.map = pa.memory_map(path)
        try:
            self.table = pa.ipc.open_stream(self.map).read_all()
        except pa.ArrowInvalid:
            self.table = pa.ipc.open_file(pa.memory_map(path)).read_all()
        super().__init__(path, self.table.schema, self.table.num_rows)

    def batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
        """From `start` itself."""
        for batch in self.table.select(columns).slice(start).to_batches(max_chunksize=ROWS_AT_A_TIME):
            yield start, batch
            start += batch.num_rows


class LanceTable(Opened):
    """A Lance dataset."""

    def __init__(self, path: str) -> None:
        try:
            import lance  # type: ignore[import-not-found]
        except ImportError as error:
            raise MissingExtraError(f'{path} is a Lance dataset; pip install "dinokit[lance]" reads it.') from error
        self.dataset = lance.dataset(path)
        super().__init__(path, self.dataset.schema, self.dataset.count_rows())

    def batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
        """From `start` itself."""
        while start < self.rows:
            numbers = list(range(start, min(start + ROWS_AT_A_TIME, self.rows)))
            for batch in self.dataset.take(numbers, columns=columns).combine_chunks().to_batches():
                yield start, batch
                start += batch.num_rows
