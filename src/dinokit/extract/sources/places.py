"""`open_sources`: what somebody wrote on the command line to sources."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dinokit.errors import StorageError
from dinokit.extract.sources.files import Folder, Paths
from dinokit.extract.sources.listing import Source, as_text
from dinokit.extract.sources.tables import Table, hugging_face, opened
from dinokit.extract.sources.tar import Tar

PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image_path")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of tables are meant, and from where relative paths are."""

    image: str | None = None
    path: str | None = None
    id: str | None = None
    root: str = ""


def open_sources(places: Iterable[str], *, files: Sequence[str] = (), columns: Columns = Columns()) -> list[Source]:
    """Folders, globs, `{000..127}`, tar, Parquet, CSV, Hugging Face folders, Lance, image files, and a list of paths.

    A name that is nothing of these is kept as an image file: its row will say `not_a_file`.

    Raises:
        StorageError: a manifest or table that can't be used.
    """
    found: list[Source] = []
    loose: list[str] = []

    def settle() -> None:
        if loose:
            found.append(Paths(tuple(loose), root=columns.root))
            loose.clear()

    for place in places:
        for path in _expanded(place):
            sources = _opened(path, columns)
            if sources is None:
                loose.append(path)
            else:
                settle()
                found.extend(sources)
    settle()
    if files:
        found.append(Paths(tuple(files), root=columns.root))
    return found


def _opened(path: str, columns: Columns) -> list[Source] | None:
    suffix = os.path.splitext(path.rstrip("/"))[1].lower()
    if os.path.isdir(path):
        if suffix == ".lance":
            return [Table("lance", (path,), columns.image, columns.id, _stem(path))]
        splits = hugging_face(path)
        if splits is not None:
            return [Table("arrow", files, columns.image, columns.id, name) for name, files in splits]
        return [Folder(path)]
    if not os.path.isfile(path):
        return None
    match suffix:
        case ".tar":
            return [Tar(path)]
        case ".parquet":
            return [_parquet(path, columns)]
        case ".arrow":
            return [Table("arrow", (path,), columns.image, columns.id, _stem(path))]
        case ".csv" | ".tsv":
            return [_csv(path, "\t" if suffix == ".tsv" else ",", columns)]
        case ".gz" | ".tgz" if path.endswith((".tar.gz", ".tgz")):
            raise StorageError(f"{path} is compressed, so no image can be read from it by itself. Unpack it first.")
    return None


def _parquet(path: str, columns: Columns) -> Source:
    with opened("parquet", path) as table:
        names = table.schema.names
        wanted = columns.path
        if wanted is None and columns.image is None:
            import pyarrow as pa

            binary = any(pa.types.is_struct(f.type) or pa.types.is_binary(f.type) for f in table.schema)
            wanted = None if binary else next((name for name in PATH_COLUMNS if name in names), None)
        if wanted is None:
            return Table("parquet", (path,), columns.image, columns.id, _stem(path))
        for name in (wanted, columns.id):
            if name is not None and name not in names:
                raise _no_column(path, name, names)
        paths: list[str] = []
        ids: list[str] = []
        for _, batch in table.batches(0, [wanted, *([columns.id] if columns.id else [])]):
            paths.extend(map(as_text, batch.column(wanted).to_pylist()))
            if columns.id:
                ids.extend(map(as_text, batch.column(columns.id).to_pylist()))
    return Paths(tuple(paths), tuple(ids) if columns.id else None, columns.root, _stem(path))


def _csv(path: str, delimiter: str, columns: Columns) -> Source:
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            names = list(reader.fieldnames or ())
            wanted = columns.path or next((name for name in PATH_COLUMNS if name in names), None)
            if wanted is None:
                raise StorageError(
                    f"{path}: no column is called {', '.join(PATH_COLUMNS)}; it has {', '.join(names)}. Name one with --path-column."
                )
            for name in (wanted, columns.id):
                if name is not None and name not in names:
                    raise _no_column(path, name, names)
            rows = [(row[wanted] or "", row[columns.id] or "" if columns.id else "") for row in reader]
    except csv.Error as error:
        raise StorageError(f"{path} is no table of {delimiter!r} separated values: {error}.") from error
    ids = tuple(given for _, given in rows) if columns.id else None
    return Paths(tuple(found for found, _ in rows), ids, columns.root, _stem(path))


def _no_column(path: str, name: str, names: list[str]) -> StorageError:
    return StorageError(f"{path} has no column {name!r}; it has {', '.join(names)}.")


def _expanded(place: str) -> list[str]:
    """Globs and number ranges in braces to names, sorted; a name that exists is taken as it is."""
    if os.path.lexists(place):
        return [place]
    ranged = BRACES.search(place)
    if ranged:
        low, high = ranged.groups()
        numbers = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
        return [
            path for number in numbers for path in _expanded(place[: ranged.start()] + number + place[ranged.end() :])
        ]
    if glob.has_magic(place):
        matches = sorted(glob.iglob(place, recursive=True))
        if not matches:
            raise StorageError(f"nothing matches {place!r} here ({os.getcwd()}).")
        return matches
    return [place]


def _stem(path: str) -> str:
    return os.path.basename(path.rstrip("/")).partition(".")[0]
