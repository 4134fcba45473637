"""The Parquet schema of a feature collection: one row an input, vectors as fixed-size lists, the identity in the metadata.

Promise: equal rows give equal bytes. Vectors are byte-stream-split and zstd, which is both smaller and faster to read than either
alone; fixed-size lists are what vector databases search.
"""

from __future__ import annotations

import json
from typing import IO, Any

from dinokit.errors import IdentityError, MissingExtraError
from dinokit.store.identity import Feature, Identity

METADATA_KEY = b"dinokit"
FACTS = ("id", "path", "status", "error_code", "error", "width", "height", "mode", "frames", "notes", "sha256")


def need_pyarrow() -> Any:
    """Pyarrow with its Parquet part.

    Raises:
        ImportError: it is not installed; says how.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            'feature collections are Parquet files; pip install "dinokit[data]" brings pyarrow.'
        ) from error
    return pa


def arrow_schema(identity: Identity) -> Any:
    """The schema of a shard, the identity as one JSON object under the key `dinokit`."""
    pa = need_pyarrow()
    facts = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),
        pa.field("frames", pa.int32()),
        pa.field("notes", pa.list_(pa.string())),
        pa.field("sha256", pa.string()),
    ]
    assert tuple(field.name for field in facts) == FACTS
    vectors = []
    for feature in identity.features:
        number = pa.float32() if feature.dtype == "float32" else pa.float16()
        vectors.append(pa.field(feature.column, pa.list_(number, feature.dim)))
        vectors.append(pa.field(feature.norm_column, pa.float32()))
    text = json.dumps(identity.to_dict(), sort_keys=True)
    return pa.schema([*facts, *vectors], metadata={METADATA_KEY: text.encode()})


def read_identity(schema: Any, source: str) -> Identity:
    """The identity in a schema's metadata.

    Raises:
        IdentityError: there is none, or it is damaged or of another version.
    """
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise IdentityError(
            f"{source} does not say which model made its vectors: its metadata has no {METADATA_KEY.decode()!r}. "
            f"dinokit did not write it."
        )
    try:
        return Identity.from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise IdentityError(f"{source} can't be used: {error}") from error


def write_table(table: Any, file: IO[bytes], features: tuple[Feature, ...]) -> None:
    """Write rows as one Parquet file."""
    parquet = need_pyarrow().parquet
    split = [f"{feature.column}.list.element" for feature in features]
    plain = [name for name in table.schema.names if name not in {feature.column for feature in features}]
    parquet.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=[name for name in plain if name in ("status", "error_code", "mode")],
        use_byte_stream_split=split,
        write_statistics=plain,
        store_schema=True,
    )
