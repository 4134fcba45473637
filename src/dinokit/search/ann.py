"""Approximate search for collections that are too large to be asked exactly: a faiss index, and how much of the truth it finds.

Promise: the file beside the index says which vectors are in it; another collection is refused. Needs the extra `search`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float32

from dinokit.atomic import write_json
from dinokit.errors import IdentityError, MissingExtraError, OutputError, StorageError
from dinokit.search.knn import Neighbours, nearest
from dinokit.search.vectors import BLOCK_ROWS, MEMORY, as_array, held, to_unit
from dinokit.store import FeatureSet

Kind = Literal["flat", "hnsw", "ivf"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRAINED_ON = 64  # vectors a list of IVF learns from, at most


def need_faiss() -> Any:
    """Faiss.

    Raises:
        ImportError: it is not installed; says how.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            'approximate search is done by faiss; pip install "dinokit[search]" brings faiss-cpu.'
        ) from error
    return faiss


@dataclass(frozen=True)
class FaissIndex:
    """An index over the unit vectors of a collection, by cosine; numbers are those of the collection."""

    index: Any
    kind: str
    compat_id: str

    def nearest(self, queries: Float32[np.ndarray, "q d"], k: int = 10) -> Neighbours:
        """As `dinokit.search.nearest` with cosine, but not always the very nearest."""
        scores, numbers = self.index.search(to_unit(as_array(queries)), k)
        return Neighbours(numbers.astype(np.int64), scores)

    def recall(self, queries: Float32[np.ndarray, "q d"], features: FeatureSet, k: int = 10) -> float:
        """Which share of the exact k nearest the index finds, over these queries."""
        exact, found = nearest(queries, features, k).numbers, self.nearest(queries, k).numbers
        hits = sum(len(np.intersect1d(a[a >= 0], b)) for a, b in zip(exact, found, strict=True))
        return hits / max(int((exact >= 0).sum()), 1)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write faiss' file, and NAME.json beside it with what is inside.

        Raises:
            OutputError: it exists already.
            StorageError: the disk refuses.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already; choose another name or overwrite it.")
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            need_faiss().write_index(self.index, str(temporary))
            temporary.replace(path)
        except (RuntimeError, OSError) as error:
            raise StorageError(f"{path} can't be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        write_json(
            _beside(path),
            {"schema": 1, "kind": self.kind, "compat_id": self.compat_id, "vectors": int(self.index.ntotal)},
        )
        return path


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def faiss_index(
    features: FeatureSet,
    kind: Kind = "flat",
    *,
    lists: int | None = None,
    probes: int = 16,
    neighbours: int = 32,
    memory: int = MEMORY,
) -> FaissIndex:
    """Build `flat` (exact), `hnsw` (a graph of `neighbours` a node), or `ivf` (`lists` cells, 4 sqrt(n) by default, `probes` read).

    All vectors end in memory, as faiss keeps them.

    Raises:
        ImportError: faiss is missing.
        ValueError: an unknown kind, or no vectors.
    """
    faiss = need_faiss()
    count, dim = len(features), features.dim
    if kind not in KINDS or not count:
        raise ValueError(
            f"kind is {kind!r} of {count} vectors; kinds are {', '.join(KINDS)}, and there must be vectors."
        )
    with held(features, unit=True, memory=memory) as vectors:
        if kind == "flat":
            index = faiss.IndexFlatIP(dim)
        elif kind == "hnsw":
            index = faiss.IndexHNSWFlat(dim, neighbours, faiss.METRIC_INNER_PRODUCT)
        else:
            lists = min(lists or max(round(4 * count**0.5), 1), count)
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.min_points_per_centroid = 1
            index.nprobe = min(probes, lists)
            numbers = np.random.default_rng(0).permutation(count)[: TRAINED_ON * lists]
            index.train(vectors.take(np.sort(numbers)))
        for _, block in vectors.blocks(BLOCK_ROWS):
            index.add(np.ascontiguousarray(block))
    return FaissIndex(index, kind, features.compat_id)


def open_faiss(path: str | Path, features: FeatureSet) -> FaissIndex:
    """A saved index of this collection.

    Raises:
        ImportError: faiss is missing.
        StorageError: no such file, or damaged.
        IdentityError: it was made of other vectors.
    """
    path = Path(path)
    try:
        about = json.loads(_beside(path).read_text("utf-8"))
        index = need_faiss().read_index(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"{path} is no index that dinokit saved, or damaged: {error}") from error
    if about.get("compat_id") != features.compat_id or index.ntotal != len(features):
        raise IdentityError(
            f"{path} holds {index.ntotal} vectors of compat_id {about.get('compat_id')}, the collection {len(features)} of "
            f"{features.compat_id}. Build the index again."
        )
    return FaissIndex(index, about["kind"], about["compat_id"])
