"""Vectors that were computed here (centroids, one's own) as a collection of one file, which everything else can open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dinokit.atomic import write_atomically
from dinokit.errors import OutputError
from dinokit.search.vectors import as_array, lengths
from dinokit.store import Feature, Identity
from dinokit.store.schema import FACTS, arrow_schema, need_pyarrow, write_table


def write_collection(
    path: str | Path,
    vectors: Float32[np.ndarray, "n d"],
    ids: Sequence[str],
    identity: Identity,
    *,
    feature: Feature | None = None,
    facts: Mapping[str, Sequence[Any]] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one column of vectors, `identity`'s first or `feature`, with an id each; length 1 if the column is said to be normalized.

    `facts` are further columns (`path`, `width`, `height`, `sha256`, ...); the path is the id without one.

    Raises:
        ValueError: numbers of vectors and ids differ, ids repeat, or vectors do not have the column's length.
        OutputError: the file exists already.
        StorageError: the disk refuses.
    """
    path, array, feature = Path(path), as_array(vectors), feature or identity.features[0]
    if len(array) != len(ids) or len(set(ids)) != len(ids):
        raise ValueError(f"{len(array)} vectors and {len(set(ids))} different ids; each vector has its own.")
    if array.shape[1] != feature.dim:
        raise ValueError(
            f"the column {feature.column!r} has vectors of {feature.dim} numbers, these have {array.shape[1]}."
        )
    if unknown := sorted(set(facts or {}) - set(FACTS)):
        raise ValueError(f"unknown columns {', '.join(unknown)}; there are {', '.join(FACTS)}.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another name or overwrite it.")
    pa = need_pyarrow()
    norms = lengths(array)
    if feature.normalized:
        array = array / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    schema = arrow_schema(replace(identity, features=(feature,)))
    given: dict[str, Sequence[Any]] = {"id": ids, "path": ids, "status": ["ok"] * len(ids)} | dict(facts or {})
    number = np.float32 if feature.dtype == "float32" else np.float16
    columns = [pa.array(given.get(name, [None] * len(ids)), schema.field(name).type) for name in FACTS]
    columns.append(pa.FixedSizeListArray.from_arrays(pa.array(array.astype(number).ravel()), feature.dim))
    columns.append(pa.array(norms))
    table = pa.Table.from_arrays(columns, schema=schema)
    return write_atomically(path, lambda file: write_table(table, file, (feature,)))
