"""Duplicates: exact by bytes of the file or of the vector, near by cosine; a plan that says what to keep, and never touches a file.

Promise: groups are the connected components of "cosine at least the threshold" over all pairs; every dropped image names the one that
is kept for it. Source of the procedure: Oquab et al. 2023, appendix A.3 (there with 64 nearest neighbours instead of all pairs).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from dinokit.search.facts import read_facts
from dinokit.search.knn import nearest
from dinokit.search.pairs import Components, Watch, close_pairs, exact_cosines, unwatched
from dinokit.search.vectors import MEMORY, Chosen, Held, Stored, held
from dinokit.store import FeatureSet

Keep = Literal["largest", "first"]
THRESHOLD = 0.98
COLUMNS = {
    "group": "int64",
    "id": "string",
    "path": "string",
    "action": "string",
    "kept": "string",
    "similarity": "float32",
    "reason": "string",
    "number": "int64",
}
QUERY_ROWS = 16_384
SAME = 1 - 1e-6  # cosine of one vector that was stored twice


@dataclass(frozen=True)
class Plan:
    """What to keep and what to drop. `rows` are the members of groups: `COLUMNS`, groups in order, the kept one first.

    `similarity` is the cosine with the kept one, which in a chain may be below the threshold; `reason` is sha256 (same file), vector
    (same vector) or near.
    """

    rows: list[dict[str, Any]]
    num_images: int
    threshold: float | None

    @property
    def num_groups(self) -> int:
        """Groups of two and more."""
        return len({row["group"] for row in self.rows})

    @property
    def dropped(self) -> list[dict[str, Any]]:
        """Rows to drop."""
        return [row for row in self.rows if row["action"] == "drop"]

    def summary(self) -> dict[str, Any]:
        """Counts, for JSON."""
        reasons = [row["reason"] for row in self.dropped]
        return {
            "images": self.num_images,
            "groups": self.num_groups,
            "drop": len(reasons),
            "keep": self.num_images - len(reasons),
            "reasons": {name: reasons.count(name) for name in sorted(set(reasons))},
            "threshold": self.threshold,
        }


def dedup(
    features: FeatureSet,
    threshold: float | None = THRESHOLD,
    *,
    keep: Keep = "largest",
    memory: int = MEMORY,
    watch: Watch = unwatched,
) -> Plan:
    """Duplicates within a collection. Without a threshold only exact ones.

    `keep` "largest": most pixels, then the smallest id; "first": first in the collection. Time grows with the square of the number
    of images; memory is `memory` bytes of vectors (more go to a scratch file) and a tile.

    Raises:
        ValueError: the threshold is no cosine, or `keep` is unknown.
        StorageError: no room for the scratch file.
    """
    check_threshold(threshold)
    facts = read_facts(features)
    with held(features, unit=True, memory=memory) as vectors:
        components = duplicates(vectors, facts["sha256"], threshold, watch)
        rows: list[dict[str, Any]] = []
        for group, members in enumerate(components.groups()):
            rows += _group_rows(group, members, facts, vectors, keep)
    return Plan(rows, len(features), threshold)


def check_threshold(threshold: float | None) -> None:
    """Refuse what is no cosine.

    Raises:
        ValueError: it lies outside of (0, 1].
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}; it is a cosine above 0 and at most 1.")


def duplicates(
    vectors: Held, sums: Sequence[str | None], threshold: float | None, watch: Watch = unwatched
) -> Components:
    """What hangs together: equal sha256 sums, equal vectors, and cosines of at least `threshold`. `vectors` have length 1."""
    everything = np.arange(len(vectors))
    components = Components(len(vectors))
    components.join(everything, _firsts(sums))
    same = same_vectors(vectors)
    components.join(everything, same)
    if threshold is None:
        return components
    # copies hang together already, so that one of each vector is enough
    distinct = np.flatnonzero(same == everything)
    few = vectors if len(distinct) == len(vectors) else Chosen(vectors, distinct)
    for i, j, _ in close_pairs(few, [threshold], watch=watch):
        components.join(distinct[i], distinct[j])
    return components


def same_vectors(vectors: Held) -> Int64[np.ndarray, " n"]:
    """For each vector the first that is equal to it, bit for bit."""
    return _firsts([
        hashlib.blake2b(row, digest_size=16).digest() for _, block in vectors.blocks() for row in np.ascontiguousarray(block)
    ])  # fmt: skip


def _firsts(values: Sequence[Any]) -> Int64[np.ndarray, " n"]:
    """Where each value stands first; None is equal to nothing."""
    seen: dict[Any, int] = {}
    return np.array([i if value is None else seen.setdefault(value, i) for i, value in enumerate(values)], np.int64)


def kept_of(members: Int64[np.ndarray, " n"], facts: dict[str, list[Any]], keep: Keep) -> int:
    """Which member of a group stays.

    Raises:
        ValueError: an unknown rule.
    """
    if keep == "first":
        return int(members.min())
    if keep != "largest":
        raise ValueError(f"keep is {keep!r}; it must be largest or first.")

    def order(number: int) -> tuple[int, str]:
        return -(facts["width"][number] or 0) * (facts["height"][number] or 0), facts["id"][number]

    best: int = min(members.tolist(), key=order)
    return best


def _group_rows(
    group: int, members: Int64[np.ndarray, " n"], facts: dict[str, list[Any]], vectors: Held, keep: Keep
) -> list[dict[str, Any]]:
    best = kept_of(members, facts, keep)
    others = members[members != best]
    found = vectors.take(others)
    chosen = vectors.take(np.array([best]))
    cosines = exact_cosines(found, np.broadcast_to(chosen, found.shape))
    rows = [_row(facts, best, group, "keep", best, None, "kept")]
    for number, vector, cosine in zip(others.tolist(), found, cosines.tolist(), strict=True):
        same_file = facts["sha256"][number] is not None and facts["sha256"][number] == facts["sha256"][best]
        reason = "sha256" if same_file else "vector" if np.array_equal(vector, chosen[0]) else "near"
        rows.append(_row(facts, number, group, "drop", best, cosine, reason))
    return rows


def _row(
    facts: dict[str, list[Any]], number: int, group: int, action: str, kept: int, similarity: float | None, reason: str
) -> dict[str, Any]:
    return {
        "group": group,
        "id": facts["id"][number],
        "path": facts["path"][number],
        "action": action,
        "kept": facts["id"][kept],
        "similarity": similarity,
        "reason": reason,
        "number": number,
    }


def leakage(
    features: FeatureSet, reference: FeatureSet, threshold: float | None = THRESHOLD, *, force: bool = False
) -> Plan:
    """Images that are in `reference` too, such as a test set: a plan that drops them. Each is a group of its own.

    `kept` is the id of the nearest image of `reference`, `similarity` the cosine with it; with the same file the reason is sha256.

    Raises:
        ValueError: the threshold is no cosine.
        IdentityError: the collections are not comparable; `force` compares all the same.
    """
    check_threshold(threshold)
    if not force:
        features.require_same(reference)
    facts, theirs = read_facts(features), read_facts(reference, ("id", "sha256"))
    known = {value: i for i, value in reversed(list(enumerate(theirs["sha256"]))) if value is not None}
    rows: list[dict[str, Any]] = []
    for start, block in Stored(features).blocks(QUERY_ROWS):
        found = nearest(block, reference, 1)
        for offset, (number, cosine) in enumerate(zip(found.numbers[:, 0].tolist(), found.scores[:, 0], strict=True)):
            own = start + offset
            same = known.get(facts["sha256"][own])
            close = number >= 0 and cosine >= np.float32(SAME if threshold is None else threshold)
            if same is None and not close:
                continue
            row = _row(facts, own, len(rows), "drop", own, float(cosine), "near" if same is None else "sha256")
            rows.append(row | {"kept": theirs["id"][number if same is None else same]})
    return Plan(rows, len(features), threshold)
