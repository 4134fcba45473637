"""Which stages a backbone gives, by name ("stem", "stage1", ...) and by index, kept in step.

Promise: after `aligned`, names and indices say the same thing and stand in stage order; a negative index stays as it was given.
Source: transformers 5.23's rules for `out_features` and `out_indices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Stages(NamedTuple):
    """Chosen stages: their names, and their indices in the list of all names."""

    features: list[str]
    indices: list[int]


def stage_names(num_hidden_layers: int) -> list[str]:
    """The embedding output ("stem") and one stage a block."""
    return ["stem", *(f"stage{index}" for index in range(1, num_hidden_layers + 1))]


def aligned(names: list[str], features: list[str] | None, indices: Sequence[int] | None) -> Stages:
    """The chosen stages; the last one where nothing is chosen.

    Raises:
        ValueError: not a list, an unknown stage, an index out of range, one twice, another order than that of `names`, or
            names and indices that disagree.
    """
    if features is not None:
        _check_features(names, features)
    if indices is not None:
        indices = _check_indices(names, indices)
    match features, indices:
        case None, None:
            return Stages([names[-1]], [len(names) - 1])
        case _, None:
            return Stages(list(features or []), [names.index(name) for name in features or []])
        case None, _:
            return Stages([names[index] for index in indices or []], list(indices or []))
    assert features is not None
    assert indices is not None
    if len(features) != len(indices):
        raise ValueError(
            f"out_features {features} and out_indices {list(indices)} should have the same length if both are set."
        )
    if features != [names[index] for index in indices]:
        raise ValueError(
            f"out_features {features} and out_indices {list(indices)} should correspond to the same stages if both are set."
        )
    return Stages(list(features), list(indices))


def _check_features(names: list[str], features: list[str]) -> None:
    if not isinstance(features, list):
        raise ValueError(f"out_features must be a list, got {type(features).__name__}.")
    unknown = [name for name in features if name not in names]
    if unknown:
        raise ValueError(f"out_features must be a subset of stage_names {names}; it has {unknown}.")
    _check_order("out_features", features, [names.index(name) for name in features])


def _check_indices(names: list[str], indices: Sequence[int]) -> list[int]:
    if not isinstance(indices, list | tuple):
        raise ValueError(f"out_indices must be a list or tuple, got {type(indices).__name__}.")
    if any(not isinstance(index, int) or not -len(names) <= index < len(names) for index in indices):
        raise ValueError(
            f"out_indices must be valid indices for the {len(names)} stage_names {names}; it is {list(indices)}."
        )
    _check_order("out_indices", list(indices), [index % len(names) for index in indices])
    return list(indices)


def _check_order(what: str, given: Sequence[object], positions: list[int]) -> None:
    if len(set(positions)) < len(positions):
        raise ValueError(f"{what} must not contain any duplicates; it is {given}.")
    if positions != sorted(positions):
        raise ValueError(f"{what} must be in the same order as stage_names; it is {given}.")
