"""Retrieval: how high what belongs together ranks by cosine; by class labels, or by lists of what each query should find.

Source: Radenovic et al. 2018 (revisited Oxford and Paris): what is to be found and what is passed over in Easy, Medium and Hard.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from dinokit.evals.datasets import DatasetError
from dinokit.evals.knn import Vectors, check_labelled
from dinokit.evals.metrics import Ranking, judge_ranking

KS = (1, 5, 10)
# setup: (lists that are to be found, lists that are passed over)
SETUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
QUERY_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class RetrievalScore:
    """`map` is mean average precision; `queries` those that had something to find."""

    map: float
    precision_at: dict[int, float]
    queries: int

    @classmethod
    def of(cls, ranking: Ranking) -> RetrievalScore:
        """Means over the queries with something to find."""
        return cls(
            map=ranking.mean_average_precision,
            precision_at={k: values.nanmean().item() for k, values in ranking.precision_at.items()},
            queries=int((~ranking.average_precision.isnan()).sum()),
        )


@dataclass(frozen=True)
class GroundTruth:
    """A benchmark with lists: names of the gallery and of the queries, and per query numbers of the gallery by kind.

    `boxes` (left, top, right, bottom in pixels) say which part of a query's image asks; None is the whole.
    """

    gallery: tuple[str, ...]
    queries: tuple[str, ...]
    lists: tuple[Mapping[str, tuple[int, ...]], ...]
    boxes: tuple[tuple[float, float, float, float] | None, ...]


def retrieval_by_labels(features: Vectors, labels: Int64[Tensor, " m"], *, ks: Sequence[int] = KS) -> RetrievalScore:
    """Each vector asks for the others of its class; it is not in its own ranking.

    Raises:
        ValueError: labels that don't fit.
    """
    check_labelled(features, labels, "retrieval")
    units = F.normalize(torch.as_tensor(features[:]).float(), dim=1)
    parts = []
    for start in range(0, len(units), QUERY_ROWS):
        own = torch.arange(start, min(start + QUERY_ROWS, len(units)))
        order = _order(units[own] @ units.T)
        parts.append(judge_ranking(labels[order] == labels[own, None], order == own[:, None], ks=ks))
    return RetrievalScore.of(_joined(parts))


def retrieval_by_lists(
    queries: Vectors, gallery: Vectors, truth: GroundTruth, *, ks: Sequence[int] = KS
) -> dict[str, RetrievalScore]:
    """Scores in the setups easy, medium and hard, of which each takes other lists.

    Raises:
        ValueError: not a vector for each query and each image of the gallery.
    """
    if len(queries) != len(truth.queries) or len(gallery) != len(truth.gallery):
        raise ValueError(
            f"{len(queries)} queries and {len(gallery)} vectors of the gallery; the lists speak of {len(truth.queries)} and "
            f"{len(truth.gallery)}."
        )
    asked = F.normalize(torch.as_tensor(queries[:]).float(), dim=1)
    order = _order(asked @ F.normalize(torch.as_tensor(gallery[:]).float(), dim=1).T)
    found = {}
    for setup, (wanted, passed) in SETUPS.items():
        relevant, junk = (_member(truth, kinds).gather(1, order) for kinds in (wanted, passed))
        found[setup] = RetrievalScore.of(judge_ranking(relevant, junk, rule="trapezoid", ks=ks))
    return found


def read_ground_truth(path: str | Path) -> GroundTruth:
    """A `gnd_*.pkl` of revisited Oxford or Paris, or a JSON file of the same content (imlist, qimlist, gnd).

    A pickle may hold plain lists, dictionaries, texts and numbers; anything else is refused before it runs.

    Raises:
        DatasetError: unreadable, unsafe, or something else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = json.load(file) if path.suffix == ".json" else _Plain(file).load()
        gallery, queries = tuple(map(str, content["imlist"])), tuple(map(str, content["qimlist"]))
        lists = tuple(
            {kind: tuple(int(n) for n in entry.get(kind, ())) for kind in ("easy", "hard", "junk")}
            for entry in content["gnd"]
        )
        boxes = tuple(_box(entry.get("bbx")) for entry in content["gnd"])
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}.") from error
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError, EOFError, IndexError) as error:
        raise DatasetError(
            f"{path} is no list of what queries should find ({type(error).__name__}: {error}); expected imlist, qimlist, and gnd with "
            f"easy, hard and junk for each query, as JSON or as a pickle of plain values."
        ) from error
    numbers = [n for entry in lists for values in entry.values() for n in values]
    if len(lists) != len(queries) or not all(0 <= n < len(gallery) for n in numbers):
        raise DatasetError(
            f"{path}: {len(lists)} lists for {len(queries)} queries, or a number beyond the {len(gallery)} images."
        )
    return GroundTruth(gallery, queries, lists, boxes)


class _Plain(pickle.Unpickler):
    """Of plain values only: whatever would import or call something is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Nothing is found."""
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def _box(box: Any) -> tuple[float, float, float, float] | None:
    if box is None:
        return None
    left, top, right, bottom = (float(value) for value in box)
    return left, top, right, bottom


def _order(cosines: Tensor) -> Int64[Tensor, "q n"]:
    """Best first; equals in the order of the gallery."""
    return cosines.sort(dim=1, descending=True, stable=True).indices


def _member(truth: GroundTruth, kinds: Sequence[str]) -> Tensor:
    out = torch.zeros(len(truth.queries), len(truth.gallery), dtype=torch.bool)
    for row, entry in zip(out, truth.lists, strict=True):
        for kind in kinds:
            row[list(entry[kind])] = True
    return out


def _joined(parts: Sequence[Ranking]) -> Ranking:
    ks = parts[0].precision_at
    return Ranking(
        torch.cat([part.average_precision for part in parts]),
        {k: torch.cat([part.precision_at[k] for part in parts]) for k in ks},
    )
