"""Plans and results as files: Parquet, CSV or JSON lines by their suffix, and from which vectors they came.

Promise: whole or not there at all. The origin is in the metadata of Parquet under `dinokit.origin`, else beside in NAME.origin.json.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinokit._version import __version__
from dinokit.atomic import write_atomically, write_json
from dinokit.errors import OutputError, StorageError
from dinokit.store import FeatureSet
from dinokit.store.schema import need_pyarrow

SUFFIXES = (".parquet", ".csv", ".jsonl")
ORIGIN_KEY = b"dinokit.origin"


def check_table(path: Path, *, overwrite: bool = False) -> Path:
    """Refuse, before anything is computed, what can't become a table.

    Raises:
        ValueError: a suffix that is none of `SUFFIXES`.
        OutputError: it exists already.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a table is a file that ends in {', '.join(SUFFIXES)}.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name or use --overwrite.")
    return path


def origin(features: FeatureSet, **settings: Any) -> dict[str, Any]:
    """What a table says of the vectors it was made from, and how."""
    return {
        "collection": [str(path) for path in features.files],
        "column": features.feature.column,
        "compat_id": features.compat_id,
        "model": dict(features.identity.model),
        "settings": settings,
        "dinokit": __version__,
    }


def write_rows(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Path:
    """Write rows. `columns` are names and Arrow types ("string", "int64", "float32", ...), so that an empty table has them too.

    Raises:
        ValueError, OutputError: as `check_table`.
        StorageError: the disk refuses.
    """
    check_table(path, overwrite=overwrite)
    kind = path.suffix.lower()
    if kind == ".parquet":
        pa = need_pyarrow()
        fields = [pa.field(name, getattr(pa, type_)()) for name, type_ in columns.items()]
        text = json.dumps(about, sort_keys=True)
        table = pa.Table.from_pylist(
            [dict(row) for row in rows], schema=pa.schema(fields, metadata={ORIGIN_KEY: text.encode()})
        )
        return write_atomically(path, lambda file: pa.parquet.write_table(table, file, compression="zstd"))
    content = _csv(rows, columns) if kind == ".csv" else json_lines(rows, columns)
    write_json(path.with_name(f"{path.stem}.origin.json"), about)
    return write_atomically(path, lambda file: file.write(content))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that `write_rows` wrote; of CSV all values are text.

    Raises:
        ValueError: another suffix.
        StorageError: it can't be read.
    """
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            rows: list[dict[str, Any]] = need_pyarrow().parquet.read_table(path).to_pylist()
            return rows
        text = path.read_text("utf-8", "surrogateescape")
        if kind == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        if kind == ".jsonl":
            return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} can't be read as a plan: {error}") from error
    raise ValueError(f"{path}: a table is a file that ends in {', '.join(SUFFIXES)}.")


def read_origin(path: Path) -> dict[str, Any]:
    """What `write_rows` was told about the table's origin; empty if nothing."""
    if path.suffix.lower() == ".parquet":
        found: bytes | None = (need_pyarrow().parquet.read_schema(path).metadata or {}).get(ORIGIN_KEY)
        return dict(json.loads(found)) if found else {}
    beside = path.with_name(f"{path.stem}.origin.json")
    return dict(json.loads(beside.read_text("utf-8"))) if beside.exists() else {}


def json_lines(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bytes:
    """One object a line, all columns in each."""
    lines = (json.dumps({name: row.get(name) for name in columns}, ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode("utf-8", "surrogateescape")


def _csv(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
