"""One shard: its table, committing it, and knowing from its footer that it is there, whole and of this plan."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from dinokit.atomic import write_atomically
from dinokit.errors import OutputError
from dinokit.extract.inputs import InputRow
from dinokit.extract.plan import Plan, Shard
from dinokit.extract.prepare import Facts
from dinokit.store.identity import Identity
from dinokit.store.schema import arrow_schema, need_pyarrow, write_table

FOOTER_KEY = b"dinokit_shard"
PIECE = 1 << 20


@dataclass
class Rows:
    """Results of a shard as they grow: one `Facts` an input, vectors by column, and which rows have them."""

    facts: list[Facts]
    vectors: dict[str, Float32[np.ndarray, "n d"]]
    norms: dict[str, Float32[np.ndarray, " n"]]
    ok: Bool[np.ndarray, " n"]

    @classmethod
    def of(cls, identity: Identity, count: int) -> Rows:
        """For so many inputs."""
        return cls(
            [Facts()] * count,
            {feature.column: np.zeros((count, feature.dim), np.float32) for feature in identity.features},
            {feature.column: np.zeros(count, np.float32) for feature in identity.features},
            np.zeros(count, bool),
        )


def to_table(
    plan: Plan, shard: Shard, inputs: Sequence[InputRow], rows: Rows, dense: Mapping[str, str] | None = None
) -> Any:
    """The shard as an Arrow table that says in its metadata which one of which plan it is."""
    pa = need_pyarrow()
    absolute = plan.settings.absolute
    columns: list[Any] = [
        [row.id for row in inputs],
        [os.path.abspath(row.shown) if absolute else row.shown for row in inputs],
        ["ok" if ok else "error" for ok in rows.ok],
        *([getattr(facts, name) for facts in rows.facts] for name in ("error_code", "error", "width", "height", "mode", "frames")),
        [list(facts.notes) for facts in rows.facts],
        [facts.sha256 for facts in rows.facts],
    ]  # fmt: skip
    schema = _with_footer(
        arrow_schema(plan.identity), plan, shard, Counter(f.error_code for f in rows.facts if f.error_code), dense
    )
    missing = pa.array(~rows.ok)
    for feature in plan.identity.features:
        values = rows.vectors[feature.column].astype(feature.dtype, copy=False)
        flat = pa.array(values.reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(flat, feature.dim, mask=missing))
        columns.append(pa.array(rows.norms[feature.column], mask=~rows.ok))
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, schema.field(index).type)
        for index, column in enumerate(columns)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _with_footer(schema: Any, plan: Plan, shard: Shard, failed: Counter[str], dense: Mapping[str, str] | None) -> Any:
    footer: dict[str, Any] = {
        "shard": shard.index,
        "plan": plan.sha256,
        "inputs": shard.extent.sha256,
        "rows": len(shard),
        "failed": dict(failed),
    }
    if dense:
        footer["dense"] = dict(dense)
    return schema.with_metadata({**schema.metadata, FOOTER_KEY: json.dumps(footer, sort_keys=True).encode()})


def commit(plan: Plan, table: Any) -> Path:
    """Write a shard's table, whole or not at all.

    Raises:
        StorageError: the disk refuses; nothing is left.
    """
    shard = plan.shard(json.loads(table.schema.metadata[FOOTER_KEY])["shard"])
    buffer = io.BytesIO()
    write_table(table, buffer, plan.identity.features)
    data = buffer.getbuffer()

    def write(file: Any) -> None:
        for start in range(0, len(data), PIECE):
            file.write(data[start : start + PIECE])

    return write_atomically(plan.folder / shard.name, write)


def read_footer(plan: Plan, shard: Shard) -> dict[str, Any] | None:
    """What a shard's file says of itself; None if it is not there or damaged, which is the same to a job: it makes it anew.

    Raises:
        OutputError: it belongs to another plan.
    """
    pa = need_pyarrow()
    path = plan.folder / shard.name
    try:
        with pa.parquet.ParquetFile(path) as file:
            metadata, rows = file.schema_arrow.metadata or {}, file.metadata.num_rows
    except (pa.ArrowException, OSError):
        return None
    found: dict[str, Any] = json.loads(metadata.get(FOOTER_KEY, b"{}"))
    if (found.get("plan"), found.get("inputs"), found.get("shard")) != (plan.sha256, shard.extent.sha256, shard.index):
        raise OutputError(f"{path} was not made by the plan in {plan.folder}. Move it away, or choose another folder.")
    return found if rows == len(shard) else None


def read_rows(plan: Plan, shard: Shard) -> Rows:
    """The results of a shard that is there, for doing some of them again."""
    pa = need_pyarrow()
    table = pa.parquet.read_table(plan.folder / shard.name, memory_map=False)
    rows = Rows.of(plan.identity, len(shard))
    names = ("error_code", "error", "width", "height", "mode", "frames", "notes", "sha256")
    for index, values in enumerate(zip(*(table.column(name).to_pylist() for name in names), strict=True)):
        found = dict(zip(names, values, strict=True))
        rows.facts[index] = Facts(**found | {"notes": tuple(found["notes"] or ())})
    rows.ok[:] = [status == "ok" for status in table.column("status").to_pylist()]
    for feature in plan.identity.features:
        column = table.column(feature.column).combine_chunks()
        flat = column.filter(column.is_valid()).flatten().to_numpy(zero_copy_only=False)
        rows.vectors[feature.column][rows.ok] = flat.reshape(-1, feature.dim)
        norms = table.column(feature.norm_column).to_numpy()
        rows.norms[feature.column][rows.ok] = norms[rows.ok]
    return rows
