"""Vectors with labels for a train and a test set: from images and a model, or from feature collections.

Promise: a row is an image that has both a vector and a label; what was left out is named.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dinokit.evals.datasets import DatasetError, Labelled, read_image_folder, read_labels_csv
from dinokit.evals.features import Features, Watched, extract_features
from dinokit.evals.knn import Vectors
from dinokit.evals.logreg import split
from dinokit.evals.results import identity_of
from dinokit.store import FeatureSet
from dinokit.weights.load import Pretrained

TRAIN_SPLITS, TEST_SPLITS = ("train", "training"), ("val", "valid", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Classified:
    """A train set, and a test set or None. `columns` are slices of a vector that linear heads read; `model` what made the vectors."""

    train: Vectors
    train_labels: Int64[Tensor, " m"]
    test: Vectors | None
    test_labels: Int64[Tensor, " q"] | None
    classes: tuple[str, ...]
    columns: Mapping[str, slice]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    seconds: float
    failed: tuple[tuple[str, str], ...] = ()

    def divided(self, test_share: float, seed: int) -> Classified:
        """With a test set: its own, or else a random `test_share` of the train set.

        Raises:
            ValueError: too few vectors.
        """
        if self.test is not None:
            return self
        kept, taken = split(len(self.train_labels), test_share, seed)
        vectors = torch.as_tensor(self.train[:])
        return Classified(
            train=vectors[kept],
            train_labels=self.train_labels[kept],
            test=vectors[taken],
            test_labels=self.train_labels[taken],
            classes=self.classes,
            columns=self.columns,
            data={**self.data, "train": len(kept), "test": len(taken), "test_share": test_share, "split_seed": seed},
            model=self.model,
            seconds=self.seconds,
            failed=self.failed,
        )

    def tested(self) -> tuple[Vectors, Int64[Tensor, " q"]]:
        """The test set.

        Raises:
            ValueError: there is none; `divided` makes one.
        """
        if self.test is None or self.test_labels is None:
            raise ValueError("there is no test set; give one, or divide the train set.")
        return self.test, self.test_labels


def from_images(
    pre: Pretrained,
    root: str | Path,
    *,
    devkit: str | Path | None = None,
    blocks: int = 1,
    mean: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    storage: Path | None = None,
    watched: Watched = iter,
) -> Classified:
    """Images of a folder (see `datasets.read_image_folder`) through the network. `storage` is a folder for vectors beyond memory.

    Raises:
        DatasetError: the folder is not as expected, or none of a set's images can be read.
        ValueError: more blocks than there are.
    """
    train, test = read_image_folder(root, devkit)
    started = time.perf_counter()
    options = {"blocks": blocks, "mean": mean, "batch_size": batch_size, "workers": workers, "watched": watched}
    parts: list[tuple[Features, Tensor]] = []
    for name, images in (("train", train), ("test", test)):
        if images is not None:
            place = None if storage is None else storage / f"{name}.npy"
            found = extract_features(pre, images.paths, storage=place, **options)  # type: ignore[arg-type]
            parts.append((found, _kept_labels(images, found)))
    fitted, judged = parts[0], parts[1] if len(parts) > 1 else None
    return Classified(
        train=fitted[0].vectors,
        train_labels=fitted[1],
        test=None if judged is None else judged[0].vectors,
        test_labels=None if judged is None else judged[1],
        classes=train.classes,
        columns=fitted[0].columns,
        data=_described(str(root), parts[0][1], None if judged is None else judged[1], train.classes),
        model=identity_of(pre, "cls+mean" if mean else "cls"),
        seconds=time.perf_counter() - started,
        failed=tuple(failure for found, _ in parts for failure in found.failed),
    )


def from_features(
    sources: Sequence[str | Path], labels: str | Path | None = None, column: str | None = None
) -> Classified:
    """One or two collections: the second is the test set. `labels` is a CSV (id, label, and split for one collection).

    Without it the label of an image is the folder in which it lies, by its id. Images without a label are left out, and counted.

    Raises:
        DatasetError: more than two collections, no labels, or a test class that the train set lacks.
        IdentityError: the collections were made by different models or preprocessings.
    """
    if not 1 <= len(sources) <= 2:
        raise DatasetError(f"{len(sources)} collections; give one, or a train and a test set.")
    started = time.perf_counter()
    try:
        sets = [FeatureSet(source, column) for source in sources]
    except KeyError as error:
        raise DatasetError(str(error.args[0])) from error
    if len(sets) == 2:
        sets[0].require_same(sets[1])
    known = None if labels is None else read_labels_csv(labels)
    vectors, names, splits, unlabelled = _read(sets, known)
    in_test = np.array([_is_test(word, str(labels)) for word in splits], bool)
    classes = tuple(sorted(set(np.array(names, object)[~in_test])))
    places = {name: place for place, name in enumerate(classes)}
    if strange := sorted(set(names) - set(classes)):
        raise DatasetError(f"the test set has the class {strange[0]!r}, of which the train set has nothing.")
    numbers = torch.tensor([places[name] for name in names])
    chosen = torch.from_numpy(in_test)
    test_labels = numbers[chosen] if in_test.any() else None
    return Classified(
        train=vectors[~in_test],
        train_labels=numbers[~chosen],
        test=vectors[in_test] if in_test.any() else None,
        test_labels=test_labels,
        classes=classes,
        columns={sets[0].feature.name: slice(0, sets[0].dim)},
        data=_described(", ".join(map(str, sources)), numbers[~chosen], test_labels, classes)
        | {"without_label": unlabelled},
        model={**sets[0].identity.model, "pooling": sets[0].feature.name, "compat_id": sets[0].compat_id},
        seconds=time.perf_counter() - started,
    )


def _read(
    sets: Sequence[FeatureSet], known: Mapping[str, tuple[str, str]] | None
) -> tuple[np.ndarray, list[str], list[str], int]:
    """Vectors with a label, their labels and splits, and how many have none."""
    rows, names, splits, unlabelled = [], [], [], 0
    for place, found in enumerate(sets):
        default = "" if len(sets) == 1 else ("train", "test")[place]
        for block in found.blocks():
            keep = []
            for i, name in enumerate(block.ids):
                label, word = (PurePosixPath(name).parent.name, "") if known is None else known.get(name, ("", ""))
                if label:
                    keep.append(i)
                    names.append(label)
                    splits.append(default or word)
            unlabelled += len(block.ids) - len(keep)
            rows.append(block.vectors[keep])
    if not names:
        raise DatasetError(
            "no vector has a label; give a CSV with the columns id and label, where ids are those of the collection."
            if known is not None
            else "ids of the collection name no folders; give a CSV with the columns id and label."
        )
    return np.concatenate(rows), names, splits, unlabelled


def _is_test(word: str, source: str) -> bool:
    if word and word not in TRAIN_SPLITS + TEST_SPLITS:
        raise DatasetError(
            f"{source}: split {word!r}; write {', '.join(TRAIN_SPLITS + TEST_SPLITS)}, or nothing for train."
        )
    return word in TEST_SPLITS


def _kept_labels(images: Labelled, found: Features) -> Tensor:
    if not found.kept:
        raise DatasetError(f"none of {len(images.paths)} images can be read; the first: {found.failed[0][1]}")
    return images.labels[list(found.kept)]


def _described(source: str, train: Tensor, test: Tensor | None, classes: Iterable[str]) -> dict[str, Any]:
    return {
        "source": source,
        "classes": len(tuple(classes)),
        "train": len(train),
        "test": 0 if test is None else len(test),
    }
