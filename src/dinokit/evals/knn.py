"""Weighted k-nearest-neighbour classification: the test of features that needs no training.

Promise: nothing larger than a block of similarities is in memory; vectors may be a memory-mapped array.
Source: Wu et al. 2018, section 3.4 (the vote); settings of DINO and DINOv2: k of 10, 20, 100, 200, temperature 0.07.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
QUERY_ROWS, TRAIN_ROWS = 1024, 16_384

Vectors = Float[Tensor, "_ _"] | Float[np.ndarray, "_ _"]


@dataclass(frozen=True, kw_only=True)
class KNNScore:
    """Accuracy in [0, 1] for each k; `top5` where there are more than five classes."""

    top1: dict[int, float]
    top5: dict[int, float]

    @property
    def best_k(self) -> int:
        """The k of the highest top-1 (the smallest of equals)."""
        return max(self.top1, key=lambda k: (self.top1[k], -k))


def knn(
    train: Vectors,
    train_labels: Int64[Tensor, " m"],
    test: Vectors,
    test_labels: Int64[Tensor, " q"],
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    centred: bool = False,
    device: torch.device | str = "cpu",
) -> KNNScore:
    """Each test vector is what its `k` nearest by cosine vote for, weighted by exp(cosine / temperature).

    `centred` takes the mean of `train` from both first. A k above the number of train vectors counts as all of them.

    Raises:
        ValueError: no vectors, widths that differ, labels that don't fit, or a setting out of its range.
    """
    _check(train, train_labels, test, test_labels, ks, temperature)
    return _vote(train, train_labels, test, test_labels, ks, temperature, centred, device, leave_out=False)


def knn_leave_one_out(
    features: Vectors,
    labels: Int64[Tensor, " m"],
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    centred: bool = False,
    device: torch.device | str = "cpu",
) -> KNNScore:
    """As `knn`, each vector judged by all the others.

    Raises:
        ValueError: as `knn`, or one vector alone.
    """
    _check(features, labels, features, labels, ks, temperature)
    if len(features) < 2:
        raise ValueError("one vector has no neighbour; leaving one out needs two or more.")
    return _vote(features, labels, features, labels, ks, temperature, centred, device, leave_out=True)


def _vote(
    train: Vectors,
    train_labels: Tensor,
    test: Vectors,
    test_labels: Tensor,
    ks: Sequence[int],
    temperature: float,
    centred: bool,
    device: torch.device | str,
    *,
    leave_out: bool,
) -> KNNScore:
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    mean = _mean(train).to(device) if centred else None
    most = min(max(ks), len(train) - leave_out)
    labels, depth = train_labels.to(device), min(5, num_classes)
    hits = {k: torch.zeros(2, dtype=torch.int64) for k in ks}
    for start, queries in _blocks(test, QUERY_ROWS, device, mean):
        cosines, numbers = _nearest(queries, start if leave_out else None, train, most, device, mean)
        weights = (cosines / temperature).softmax(dim=1)
        voters = labels[numbers]
        truth = test_labels[start : start + len(queries)].to(device)
        votes = torch.zeros(len(queries), num_classes, device=device)
        done = 0
        for k in sorted(set(ks)):
            stop = min(k, most)
            votes.scatter_add_(1, voters[:, done:stop], weights[:, done:stop])
            done = stop
            right = votes.topk(depth, dim=1).indices == truth[:, None]
            hits[k] += torch.stack([right[:, 0].sum(), right.any(dim=1).sum()]).cpu()
    shares = {k: (hits[k].double() / len(test_labels)).tolist() for k in ks}
    return KNNScore(top1={k: shares[k][0] for k in ks}, top5={k: shares[k][1] for k in ks} if num_classes > 5 else {})


def _nearest(
    queries: Tensor, own: int | None, train: Vectors, k: int, device: torch.device | str, mean: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cosines and numbers of the k nearest, best first. `own` is the number of the first query in `train`, not its neighbour."""
    best = queries.new_full((len(queries), 0), 0.0)
    numbers = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start, keys in _blocks(train, TRAIN_ROWS, device, mean):
        cosines = queries @ keys.T
        if own is not None:
            place = torch.arange(own, own + len(queries), device=queries.device) - start
            inside = ((place >= 0) & (place < len(keys))).nonzero()[:, 0]
            cosines[inside, place[inside]] = -torch.inf
        together = torch.cat([best, cosines], dim=1)
        names = torch.cat(
            [numbers, torch.arange(start, start + len(keys), device=queries.device).expand_as(cosines)], 1
        )
        top = together.topk(min(k, together.shape[1]), dim=1)
        best, numbers = top.values, names.gather(1, top.indices)
    return best, numbers


def _blocks(
    vectors: Vectors, rows: int, device: torch.device | str, mean: Tensor | None
) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(vectors), rows):
        block = torch.as_tensor(vectors[start : start + rows]).to(device).float()
        yield start, F.normalize(block if mean is None else block - mean, dim=1)


def _mean(vectors: Vectors) -> Tensor:
    total = torch.zeros(vectors.shape[1], dtype=torch.float64)
    for start in range(0, len(vectors), TRAIN_ROWS):
        total += torch.as_tensor(vectors[start : start + TRAIN_ROWS]).double().sum(dim=0).cpu()
    return (total / len(vectors)).float()


def _check(
    train: Vectors, train_labels: Tensor, test: Vectors, test_labels: Tensor, ks: Sequence[int], temperature: float
) -> None:
    check_labelled(train, train_labels, "train")
    check_labelled(test, test_labels, "test")
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train vectors are {train.shape[1]} wide, test vectors {test.shape[1]}: they can't be compared."
        )
    if not ks or min(ks) < 1 or temperature <= 0:
        raise ValueError(f"k = {list(ks)} at temperature {temperature}: k is at least 1, the temperature above 0.")


def check_labelled(vectors: Vectors, labels: Tensor, which: str) -> None:
    """Refuse what can't be judged.

    Raises:
        ValueError: no vectors, another number of labels, or a label below 0.
    """
    if vectors.ndim != 2 or not len(vectors) or labels.shape != (len(vectors),) or int(labels.min()) < 0:
        raise ValueError(
            f"{which}: vectors of shape {tuple(vectors.shape)} with labels of shape {tuple(labels.shape)}; each vector needs "
            f"one label, counted from 0."
        )
