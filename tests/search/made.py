"""Collections made up for tests: vectors with an identity, on disk, in several parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinokit.search.written import write_collection
from dinokit.store import Feature, FeatureSet, Identity


def an_identity(dim: int, *, weights: str = "a", pooling: str = "cls", **more: Any) -> Identity:
    model = {"weights_sha256": weights, "form": "", "positions": [0.0, True], "name": "toy"}
    return Identity(
        model=model,
        preprocess={"fingerprint": "f"},
        features=(Feature(dim=dim, pooling=pooling, **more),),  # type: ignore[arg-type]
    )


def a_collection(
    folder: Path,
    vectors: np.ndarray,
    *,
    parts: int = 1,
    identity: Identity | None = None,
    ids: Sequence[str] | None = None,
    facts: dict[str, Sequence[Any]] | None = None,
) -> FeatureSet:
    """These vectors as `parts` files; ids i0, i1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"i{i}" for i in range(len(vectors))]
    for part, numbers in enumerate(np.array_split(np.arange(len(vectors)), parts)):
        write_collection(
            folder / f"part-{part:08}.parquet",
            vectors[numbers],
            [ids[i] for i in numbers],
            identity or an_identity(vectors.shape[1]),
            facts={name: [values[i] for i in numbers] for name, values in (facts or {}).items()},
        )
    return FeatureSet(folder)
