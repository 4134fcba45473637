"""The list of inputs of a job, on disk: read by row without being loaded, compared with what is there now.

One Arrow file, read a part at a time, so that ten million inputs cost a running job no more memory than a thousand.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dinokit.atomic import write_atomically
from dinokit.errors import StorageError
from dinokit.extract.sources.listing import Container, Entry, Source, readable
from dinokit.extract.sources.tables import Opened, opened
from dinokit.extract.where import Blob, FileAt, Slice, Where
from dinokit.store.schema import need_pyarrow

ROWS_AT_A_TIME = 16_384
CONTAINERS, STARTS = b"containers", b"starts"


class InputRow(NamedTuple):
    """One input of the plan."""

    id: str
    path: str
    container: int
    offset: int
    size: int

    @property
    def shown(self) -> str:
        """The path as text that any reader can take."""
        return readable(self.path)


class Inputs:
    """A table of inputs: `id`, `path` (bytes), `container` (-1: a file of its own), `offset`, `size`, `mtime_ns`."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self._set_up(table.schema)

    def _set_up(self, schema: Any) -> None:
        listed = json.loads((schema.metadata or {}).get(CONTAINERS, b"[]"))
        self.containers = [Container(**values) for values in listed]
        self._opened: tuple[int, Opened] | None = None

    @property
    def table(self) -> Any:
        """All of it."""
        return self._table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def sha256(self) -> str:
        """Of ids and places, in their order; times of change do not take part."""
        digest = hashlib.sha256(json.dumps([[c.kind, c.path, c.column] for c in self.containers]).encode())
        for batch in self.table.select(["id", "path", "container", "offset"]).to_batches(max_chunksize=ROWS_AT_A_TIME):
            ids, paths, containers, offsets = (column.to_pylist() for column in batch.columns)
            digest.update("\0".join(ids).encode() + b"\1" + b"\0".join(paths))
            digest.update(json.dumps([containers, offsets]).encode())
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> list[InputRow]:
        """Inputs `start` to `stop`."""
        return _rows(self.table.slice(start, stop - start))

    def where(self, row: InputRow) -> Where:
        """Where its bytes are. Tables are read here, in order; files and tars where images are decoded.

        A table that is damaged or has gone costs the rows that can't be read, no others.
        """
        if row.container < 0:
            return FileAt(row.path)
        container = self.containers[row.container]
        if container.kind == "tar":
            return Slice(row.shown, container.path, row.offset, row.size)
        pa = need_pyarrow()
        try:
            if self._opened is None or self._opened[0] != row.container:
                self.close()
                self._opened = (row.container, opened(container.kind, container.path))
            return Blob(row.shown, self._opened[1].read(row.offset, container.column))
        except (pa.ArrowException, OSError, StopIteration, KeyError) as error:
            self.close()  # the next row begins afresh
            return Blob(
                row.shown,
                None,
                f"{container.path} can't be read there ({error or 'it ends before'}). Get the file again.",
            )

    def close(self) -> None:
        """Let go of the table that was read last."""
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def save(self, path: Path) -> None:
        """Write as an Arrow file."""
        pa = need_pyarrow()

        batches = self.table.to_batches(max_chunksize=ROWS_AT_A_TIME)
        starts = [0]
        for batch in batches:
            starts.append(starts[-1] + batch.num_rows)
        metadata = {**(self.table.schema.metadata or {}), STARTS: json.dumps(starts).encode()}
        schema = self.table.schema.with_metadata(metadata)

        def write(file: Any) -> None:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch.replace_schema_metadata(metadata))

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> Inputs:
        """Open a file of `save`.

        Raises:
            StorageError: it is not there or damaged.
        """
        pa = need_pyarrow()
        try:
            return StoredInputs(path)
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"{path} can't be read: {error}. Without it the job can't go on; start in another folder."
            ) from error


class StoredInputs(Inputs):
    """A list on disk, of which only the part at hand is in memory."""

    def __init__(self, path: Path) -> None:
        pa = need_pyarrow()
        self._path = path
        self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        self._starts: list[int] = json.loads(self._reader.schema.metadata[STARTS])
        self._at_hand: tuple[int, Any] = (-1, None)
        self._set_up(self._reader.schema)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def table(self) -> Any:
        """All of it, mapped into memory for as long as somebody holds it."""
        pa = need_pyarrow()
        return pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()

    def rows(self, start: int, stop: int) -> list[InputRow]:
        """Inputs `start` to `stop`."""
        found: list[InputRow] = []
        while start < stop:
            number = bisect.bisect_right(self._starts, start) - 1
            first, end = self._starts[number], min(self._starts[number + 1], stop)
            held, batch = self._at_hand
            if held != number:
                batch = self._reader.get_batch(number)
                self._at_hand = (number, batch)
            found += _rows(batch.slice(start - first, end - start))
            start = end
        return found


def _rows(part: Any) -> list[InputRow]:
    columns = [part.column(name).to_pylist() for name in ("id", "path", "container", "offset", "size")]
    return [
        InputRow(name, os.fsdecode(path), container, offset, size)
        for name, path, container, offset, size in zip(*columns, strict=True)
    ]


def list_inputs(sources: Iterable[Source], *, prefixed: bool) -> tuple[Inputs, int]:
    """All inputs of the sources, and how many ids had to be told apart.

    `prefixed`: ids begin with the name of their source. An id that was there before gets `#2`, `#3` and so on.
    """
    pa = need_pyarrow()
    containers: dict[Container, int] = {}
    entries = _entries(sources, prefixed)
    batches, before, number = [], None, -1
    while chunk := list(islice(entries, ROWS_AT_A_TIME)):
        ids, paths, places, offsets, sizes, times = zip(*chunk, strict=True)
        numbers = []
        for place in places:
            if place is not before:  # mostly the same as of the entry before, and hashing it costs
                number = -1 if place is None else containers.setdefault(place, len(containers))
                before = place
            numbers.append(number)
        arrays = [
            pa.array(ids, pa.string()),
            pa.array([os.fsencode(path) for path in paths], pa.binary()),
            pa.array(numbers, pa.int32()),
            *(pa.array(values, pa.int64()) for values in (offsets, sizes, times)),
        ]
        batches.append(pa.record_batch(arrays, names=["id", "path", "container", "offset", "size", "mtime_ns"]))
    if not batches:
        return Inputs(_schema(pa, {}).empty_table()), 0
    table = pa.Table.from_batches(batches)
    table, doubles = _distinct(pa, table)
    return Inputs(table.replace_schema_metadata(_schema(pa, containers).metadata)), doubles


def _schema(pa: Any, containers: dict[Container, int]) -> Any:
    number = pa.int64()
    fields = {"id": pa.string(), "path": pa.binary(), "container": pa.int32(), "offset": number, "size": number}
    listed = json.dumps([asdict(container) for container in containers])
    return pa.schema([*fields.items(), ("mtime_ns", number)], metadata={CONTAINERS: listed.encode()})


def _entries(sources: Iterable[Source], prefixed: bool) -> Iterator[Entry]:
    for source in sources:
        if prefixed and source.name:
            yield from (entry._replace(id=f"{source.name}/{entry.id}") for entry in source.entries())
        else:
            yield from source.entries()


def _distinct(pa: Any, table: Any) -> tuple[Any, int]:
    """The table with ids that are all different, and how many were changed."""
    import pyarrow.compute as pc

    counts = pc.value_counts(table.column("id"))
    doubled = set(counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist())
    if not doubled:
        return table, 0
    ids = table.column("id").to_pylist()
    taken, seen, changed = set(ids), dict.fromkeys(doubled, 0), 0
    for index, name in enumerate(ids):
        if name not in doubled:
            continue
        seen[name] += 1
        if seen[name] > 1:
            number = seen[name]
            while f"{name}#{number}" in taken:
                number += 1
            ids[index] = f"{name}#{number}"
            taken.add(ids[index])
            changed += 1
    return table.set_column(0, "id", pa.array(ids, pa.string())), changed


@dataclass(frozen=True)
class Change:
    """How inputs of now differ from those of the plan: numbers of rows of the plan, and the inputs that are new."""

    removed: list[int]
    modified: list[int]
    added: Inputs


def compare(planned: Inputs, now: Inputs) -> Change:
    """What was removed, modified (size or time of change) or added since."""
    import pyarrow as pa
    import pyarrow.compute as pc

    count = len(planned)
    same_order = count <= len(now) and planned.table.column("id").equals(now.table.column("id").slice(0, count))
    if same_order:
        there, added, removed = now.table.slice(0, count), now.table.slice(count), []
        kept = planned.table
    else:
        place = pc.index_in(planned.table.column("id"), value_set=now.table.column("id"))
        found = place.is_valid()
        removed = pc.indices_nonzero(pc.invert(found)).to_pylist()
        kept, there = planned.table.filter(found), now.table.take(place.filter(found))
        added = now.table.filter(pc.invert(pc.is_in(now.table.column("id"), value_set=planned.table.column("id"))))
    differs = pc.or_(
        pc.not_equal(kept.column("size"), there.column("size")),
        pc.not_equal(kept.column("mtime_ns"), there.column("mtime_ns")),
    )
    modified = pc.indices_nonzero(differs).to_pylist()
    if removed and modified:
        numbers = pc.indices_nonzero(pa.chunked_array(found)).to_pylist()
        modified = [numbers[index] for index in modified]
    return Change(removed, modified, Inputs(added.replace_schema_metadata(now.table.schema.metadata)))


def restamped(planned: Inputs, now: Inputs, rows: Iterable[int]) -> Inputs:
    """The plan's inputs with size and time of change of now for these rows."""
    pa = need_pyarrow()
    import pyarrow.compute as pc

    table = planned.table
    names = {table.column("id")[row].as_py(): row for row in rows}
    columns = {name: table.column(name).to_pylist() for name in ("size", "mtime_ns")}
    fresh = now.table.filter(pc.is_in(now.table.column("id"), value_set=pa.array(list(names), pa.string())))
    for found in fresh.select(["id", "size", "mtime_ns"]).to_pylist():
        for name in columns:
            columns[name][names[found["id"]]] = found[name]
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.int64()))
    return Inputs(table)
