"""Collections for other tools: CSV, NPY, Parquet, FiftyOne, Lance, Embedding Atlas.

Promise: the rows of the collection that have a vector, in their order; values are those of `FeatureSet`, read in blocks.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, Float64

from dinokit.atomic import write_atomically, write_json
from dinokit.errors import MissingExtraError, OutputError
from dinokit.search.facts import find_image, read_facts
from dinokit.search.vectors import BLOCK_ROWS
from dinokit.store import FeatureSet
from dinokit.store.schema import arrow_schema, need_pyarrow

Format = Literal["csv", "npy", "parquet", "fiftyone", "lance", "embedding-atlas"]
FORMATS: tuple[Format, ...] = get_args(Format)
FACTS = ("id", "path", "width", "height", "sha256")


def export(
    features: FeatureSet, out: str | Path, to: Format, *, root: Path | None = None, overwrite: bool = False
) -> list[Path]:
    """Write the collection in another tool's format; the files that were made.

    `csv`: facts and a column a number. `npy`: vectors, and beside them NAME.ids.txt and NAME.identity.json. `parquet`: one file, which
    is a collection again. `fiftyone`: JSON of samples with absolute paths. `lance`: a data set. `embedding-atlas`: as `parquet`, with
    places on the first two principal components, `x` and `y`. `root` is the folder of the images, if their paths lead elsewhere.

    Raises:
        ValueError: an unknown format.
        ImportError: what writes the format is missing.
        OutputError: the output exists already.
        StorageError: the disk refuses.
    """
    writers: dict[str, Callable[[FeatureSet, Path, Path | None], list[Path]]] = {
        "csv": _csv,
        "npy": _npy,
        "parquet": _parquet,
        "fiftyone": _fiftyone,
        "lance": _lance,
        "embedding-atlas": _atlas,
    }
    if to not in writers:
        raise ValueError(f"the format is {to!r}; it must be one of {', '.join(FORMATS)}.")
    out = Path(out)
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists already; choose another name or use --overwrite.")
    return writers[to](features, out, root)


def _csv(features: FeatureSet, out: Path, root: Path | None) -> list[Path]:
    facts = _facts(features, root)
    names = [f"{features.feature.column}_{i}" for i in range(features.dim)]

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*FACTS, *names])
        for block in features.blocks():
            for offset, vector in enumerate(block.vectors):
                # str of float32 is the shortest that reads back to the same number
                number = block.start + offset
                writer.writerow([*(facts[name][number] for name in FACTS), *map(str, vector)])
        text.detach()

    return [write_atomically(out, write)]


def _npy(features: FeatureSet, out: Path, root: Path | None) -> list[Path]:  # noqa: ARG001 - one signature for all
    ids = out.with_name(f"{out.stem}.ids.txt")
    identity = out.with_name(f"{out.stem}.identity.json")
    lines = "".join(f"{name}\n" for name in features.ids()).encode("utf-8", "surrogateescape")

    def write(file: IO[bytes]) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(features), features.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in features.blocks():
            file.write(np.ascontiguousarray(block.vectors, "<f4").tobytes())

    return [
        write_atomically(out, write),
        write_atomically(ids, lambda file: file.write(lines)),
        write_json(identity, features.identity.to_dict() | {"column": features.feature.column}),
    ]


def _parquet(features: FeatureSet, out: Path, root: Path | None) -> list[Path]:
    return [_write_table(features, out, root, {})]


def _write_table(features: FeatureSet, out: Path, root: Path | None, more: dict[str, np.ndarray]) -> Path:
    """Facts, `more`, and the vectors, block by block."""
    pa = need_pyarrow()
    feature = replace(features.feature, dtype="float32")
    column, length = feature.column, feature.norm_column
    first = arrow_schema(replace(features.identity, features=(feature,)))
    extra = [pa.field(name, pa.from_numpy_dtype(values.dtype)) for name, values in more.items()]
    fields = [*(first.field(name) for name in (*FACTS, length)), *extra, first.field(column)]
    schema = pa.schema(fields, metadata=first.metadata)
    facts = _facts(features, root, (*FACTS, length))

    def write(file: IO[bytes]) -> None:
        with pa.parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=False, use_byte_stream_split=[f"{column}.list.element"]
        ) as writer:
            for block in features.blocks():
                part = slice(block.start, block.start + len(block.ids))
                arrays = [pa.array(facts[name][part], schema.field(name).type) for name in (*FACTS, length)]
                arrays += [pa.array(values[part]) for values in more.values()]
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(block.vectors.ravel()), features.dim))
                writer.write_batch(pa.record_batch(arrays, schema=schema))

    return write_atomically(out, write)


def _fiftyone(features: FeatureSet, out: Path, root: Path | None) -> list[Path]:
    facts = _facts(features, root)

    def write(file: IO[bytes]) -> None:
        head = {
            "name": out.stem,
            "media_type": "image",
            "dinokit": {"compat_id": features.compat_id, "dim": features.dim},
        }
        file.write(json.dumps(head, sort_keys=True).encode()[:-1] + b', "samples": [')
        for block in features.blocks():
            for offset, vector in enumerate(block.vectors.tolist()):
                number = block.start + offset
                sample = {
                    "filepath": str(Path(facts["path"][number]).absolute()),
                    "dinokit_id": facts["id"][number],
                    features.feature.column: vector,
                }
                text = json.dumps(sample, ensure_ascii=False).encode("utf-8", "surrogateescape")
                file.write((b",\n" if number else b"\n") + text)
        file.write(b"\n]}\n")

    return [write_atomically(out, write)]


def _lance(features: FeatureSet, out: Path, root: Path | None) -> list[Path]:
    try:
        import lance  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtraError(
            'Lance data sets are written by pylance; pip install "dinokit[lance]" brings it. Most tools read --to parquet too.'
        ) from error
    pa = need_pyarrow()
    facts = _facts(features, root)
    vector = pa.field(features.feature.column, pa.list_(pa.float32(), features.dim))
    fields = [pa.parquet.read_schema(features.files[0]).field(name) for name in FACTS]
    schema = pa.schema([*fields, vector])

    def batches() -> Iterator[Any]:
        for block in features.blocks():
            part = slice(block.start, block.start + len(block.ids))
            arrays = [pa.array(facts[name][part], schema.field(name).type) for name in FACTS]
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(block.vectors.ravel()), features.dim))
            yield pa.record_batch(arrays, schema=schema)

    lance.write_dataset(batches(), str(out), schema=schema, mode="overwrite")
    return [out]


def _atlas(features: FeatureSet, out: Path, root: Path | None) -> list[Path]:
    places = project(features)
    return [_write_table(features, out, root, {"x": places[:, 0].copy(), "y": places[:, 1].copy()})]


def project(features: FeatureSet, components: int = 2, block_rows: int = BLOCK_ROWS) -> Float32[np.ndarray, "n c"]:
    """Places on the first principal components, in two passes; the largest weight of each component is positive."""
    total: Float64[np.ndarray, " d"] = np.zeros(features.dim)
    products: Float64[np.ndarray, "d d"] = np.zeros((features.dim, features.dim))
    for block in features.blocks(block_rows):
        vectors = block.vectors.astype(np.float64)
        total += vectors.sum(axis=0)
        products += vectors.T @ vectors
    count = max(len(features), 1)
    mean = total / count
    _, axes = torch.linalg.eigh(torch.from_numpy(products / count - np.outer(mean, mean)))
    chosen = axes.numpy()[:, ::-1][:, :components]
    chosen = chosen * np.where(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])] < 0, -1, 1)
    places = np.zeros((len(features), components), np.float32)
    for block in features.blocks(block_rows):
        found = (block.vectors - mean) @ chosen
        places[block.start : block.start + len(block.ids), : found.shape[1]] = found
    return places


def _facts(features: FeatureSet, root: Path | None, columns: tuple[str, ...] = FACTS) -> dict[str, list[Any]]:
    facts = read_facts(features, columns)
    if root is not None:
        rows = zip(facts["id"], facts["path"], strict=True)
        facts["path"] = [str(find_image({"id": name, "path": path}, root)) for name, path in rows]
    return facts
