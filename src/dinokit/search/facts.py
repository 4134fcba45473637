"""What a collection says of its images besides their vectors: read without the vectors, once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dinokit.store import FeatureSet
from dinokit.store.schema import need_pyarrow

COLUMNS = ("id", "path", "width", "height", "sha256")
NAMES = ("id", "path")


def read_facts(features: FeatureSet, columns: Sequence[str] = COLUMNS) -> dict[str, list[Any]]:
    """These columns of all images that have a vector, in the order of the vectors."""
    pa = need_pyarrow()
    length = features.feature.norm_column
    found: dict[str, list[Any]] = {name: [] for name in columns}
    for path in features.files:
        table = pa.parquet.read_table(path, columns=list(dict.fromkeys([*columns, length])), partitioning=None)
        kept = table.filter(table.column(length).is_valid())
        for name in columns:
            found[name].extend(kept.column(name).to_pylist())
    return found


def numbers_of(features: FeatureSet, ids: Iterable[str]) -> list[int]:
    """Which vectors these ids are.

    Raises:
        KeyError: an id that the collection does not have, or that has no vector.
    """
    wanted = list(ids)
    places: dict[str, int] = {}
    missing = set(wanted)
    for number, name in enumerate(features.ids()):
        if name in missing:
            places[name] = number
            missing.discard(name)
    if missing:
        listed = ", ".join(sorted(missing)[:5])
        raise KeyError(
            f"{features.files[0].parent} has no vector with the id {listed}. Ids are paths relative to the folder that was embedded."
        )
    return [places[name] for name in wanted]


def find_image(row: dict[str, Any], root: Path | None = None) -> Path:
    """Where the image of a row is: below `root` by its id where that is given, else at its path."""
    return root / row["id"] if root is not None else Path(row["path"])
