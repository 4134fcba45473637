"""Checks of single values that a configuration or a call may carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
ATTENTIONS = (None, "sdpa", "eager")

CLASS_PREFIXES = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
"""`model_type` to how the names of its classes begin."""


def check_model_type(class_name: str, model_type: str, content: Mapping[str, Any], source: str) -> None:
    """Refuse a configuration of another kind of model.

    Raises:
        ValueError: naming the class to use instead.
    """
    found = content.get("model_type")
    if not model_type or found in (None, model_type):
        return
    right = CLASS_PREFIXES.get(str(found))
    way_out = f"use the {right} classes, or the Auto classes" if right else f"known are {', '.join(CLASS_PREFIXES)}"
    raise ValueError(f"{source} has model_type {found!r}, and {class_name} is for {model_type!r}: {way_out}.")


def check_attention(name: str | None) -> str | None:
    """`name` as it is: attention weights are computed for who asks, so "sdpa" and "eager" give the same model.

    Raises:
        ValueError: another implementation.
    """
    if name not in ATTENTIONS:
        raise ValueError(f"attn_implementation is {name!r}; it must be 'sdpa' or 'eager' (the same here), or None.")
    return name


def parse_dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    """A floating dtype, of its name ("float16", "torch.float16") or itself.

    Raises:
        ValueError: no floating dtype has this name.
    """
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if found is None and value is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype is {value!r}; it must be a floating one: 'float32', 'float16', 'bfloat16' or 'float64'."
        )
    return found


def default_labels(number: int) -> tuple[dict[int, str], dict[str, int]]:
    """(id2label, label2id) of classes that nobody named: LABEL_0 on.

    Raises:
        ValueError: not a count.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"num_labels is {number!r}; it must be a whole number, 0 or more.")
    names = {index: f"LABEL_{index}" for index in range(number)}
    return names, {label: index for index, label in names.items()}
