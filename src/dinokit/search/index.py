"""`Index`: a collection that can be asked what is nearest, exactly and in bounded memory.

Promise: nothing is loaded but blocks; only vectors of the collection's own kind are compared with it, unless somebody insists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dinokit.images.decode import Source as Image
from dinokit.search.facts import NAMES, find_image, numbers_of
from dinokit.search.knn import Metric, Neighbours, nearest
from dinokit.search.query import Region, embed_images, embed_region, model_of, with_transform
from dinokit.search.vectors import BLOCK_ROWS, Stored
from dinokit.store import FeatureSet
from dinokit.weights.load import Pretrained

QUERY_ROWS = 65_536


@dataclass(frozen=True)
class Hit:
    """An image of the collection. `score` is the cosine, the dot product or the L2 distance to the query; `rank` counts from 1."""

    rank: int
    number: int
    id: str
    path: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Index:
    """Exact search in one column of a collection: a folder, a Parquet file, a list of files, or an open `FeatureSet`.

    `pre` is the model for queries that are images; by default the one that the collection names is loaded when it is needed. At most
    three blocks of `block_rows` vectors are in memory.

    Raises:
        StorageError, IdentityError, KeyError: as `FeatureSet`.
    """

    def __init__(
        self,
        source: FeatureSet | str | Path | Sequence[str | Path],
        column: str | None = None,
        *,
        metric: Metric = "cosine",
        pre: Pretrained | None = None,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        self.features = source if isinstance(source, FeatureSet) else FeatureSet(source, column)
        self.metric, self.block_rows = metric, block_rows
        self._pre = pre

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self.features)

    @property
    def pre(self) -> Pretrained:
        """The model for queries, loaded on first use; see `model_of` for what is raised."""
        if self._pre is None:
            self._pre = model_of(self.features)
        return self._pre

    def use(self, pre: Pretrained) -> None:
        """Embed queries with this model; it must be the collection's.

        Raises:
            IdentityError: it is not.
        """
        self._pre = with_transform(pre, self.features)

    def nearest(self, queries: Float32[np.ndarray, "q d"], k: int = 10) -> Neighbours:
        """Of each vector, by number; as `dinokit.search.nearest`. What made the vectors can't be checked here."""
        return nearest(queries, self.features, k, metric=self.metric, block_rows=self.block_rows)

    def by_vectors(self, queries: Float32[np.ndarray, "q d"], k: int = 10) -> list[list[Hit]]:
        """Hits of each vector, nearest first."""
        return self.hits(self.nearest(queries, k))

    def by_ids(self, ids: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """Hits of images of the collection itself, which are not among their own hits.

        Raises:
            KeyError: an id that the collection does not have.
        """
        numbers = numbers_of(self.features, ids)
        column = self.features.feature.column
        queries = np.array([row[column] for row in self.features.rows(numbers, [column])], np.float32)
        found = nearest(
            queries, self.features, k, metric=self.metric, exclude=np.array(numbers), block_rows=self.block_rows
        )
        return self.hits(found)

    def by_images(self, images: Sequence[Image], k: int = 10) -> list[list[Hit]]:
        """Hits of images from anywhere, in any form that `decode` takes.

        Raises:
            IdentityError: the model is not the collection's.
            ImageError: an image that can't be read.
        """
        return self.by_vectors(embed_images(self.pre, self.features, list(images)), k)

    def by_region(self, image: Image, region: Region, k: int = 10) -> list[Hit]:
        """Hits of a part of an image, as the mean of its patches; for columns of means.

        Raises:
            ValueError: the column holds no means, or the region is outside of what the model sees.
            IdentityError, ImageError: as `by_images`.
        """
        return self.by_vectors(embed_region(self.pre, self.features, image, region), k)[0]

    def by_collection(
        self, other: FeatureSet, k: int = 10, *, force: bool = False, query_rows: int = QUERY_ROWS
    ) -> Iterator[tuple[int, Neighbours]]:
        """The nearest here of every vector of another collection: (number of the first, neighbours) for each `query_rows` of them.

        Raises:
            IdentityError: the collections are not comparable; `force` compares all the same.
        """
        if not force:
            self.features.require_same(other)
        for start, block in Stored(other).blocks(query_rows):
            yield start, self.nearest(block, k)

    def graph(self, k: int = 10, *, query_rows: int = QUERY_ROWS) -> Neighbours:
        """The nearest of every vector of the collection, itself left out; reads it once for each `query_rows`."""
        parts = []
        for start, block in Stored(self.features).blocks(query_rows):
            own: Int64[np.ndarray, " q"] = np.arange(start, start + len(block))
            parts.append(nearest(block, self.features, k, metric=self.metric, exclude=own, block_rows=self.block_rows))
        return Neighbours(
            np.concatenate([part.numbers for part in parts] or [np.zeros((0, k), np.int64)]),
            np.concatenate([part.scores for part in parts] or [np.zeros((0, k), np.float32)]),
        )

    def hits(self, found: Neighbours) -> list[list[Hit]]:
        """Neighbours with their names."""
        wanted = np.unique(found.numbers[found.numbers >= 0]).tolist()
        rows = dict(zip(wanted, self.features.rows(wanted, NAMES), strict=True))
        return [
            [
                Hit(rank, number, rows[number]["id"], rows[number]["path"], float(score))
                for rank, (number, score) in enumerate(zip(numbers.tolist(), scores, strict=True), start=1)
                if number >= 0
            ]
            for numbers, scores in zip(found.numbers, found.scores, strict=True)
        ]

    def image_of(self, hit: Hit, root: Path | None = None) -> Path:
        """Where the image of a hit is; see `find_image`."""
        return find_image({"id": hit.id, "path": hit.path}, root)
