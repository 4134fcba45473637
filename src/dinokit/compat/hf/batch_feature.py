"""`BatchFeature`: what an image processor returns; a dictionary that also answers to attributes.

Promise: unpacks with `**` into a model's forward, and moves with `.to` as transformers' class does.
Source: transformers' documentation of `BatchFeature`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

TENSOR_TYPES = ("pt", "np")


class BatchFeature(dict[str, Any]):
    """`data` as a dictionary whose values are also attributes.

    `tensor_type` "pt" or "np" stacks lists of equal arrays; None leaves lists.

    Raises:
        ValueError: another `tensor_type`, or arrays of different shapes to be stacked.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None) -> None:
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    @property
    def data(self) -> dict[str, Any]:
        """The dictionary itself."""
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}; it has {', '.join(self) or 'nothing'}."
            ) from None

    def __reduce__(self) -> tuple[type[BatchFeature], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Values as tensors ("pt") or arrays ("np"), in place."""
        if tensor_type is None:
            return self
        kind = str(getattr(tensor_type, "value", tensor_type))
        if kind not in TENSOR_TYPES:
            raise ValueError(f"return_tensors is {kind!r}; it must be one of {', '.join(TENSOR_TYPES)}, or None.")
        for name, value in self.items():
            self[name] = _stacked(name, value, kind)
        return self

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """Floating point tensors cast and moved, other tensors moved, everything else left; in place.

        Takes a device, a dtype, or both, as `Tensor.to` does.

        Raises:
            ValueError: the first argument is neither a device nor a dtype.
        """
        device = kwargs.get("device")
        if device is None and args and not isinstance(args[0], torch.dtype):
            if not isinstance(args[0], str | int | torch.device):
                raise ValueError(f"a batch can't be cast to {args[0]!r}; give a device, a dtype, or both.")
            device = args[0]
        moves = {"device": device, "non_blocking": kwargs.get("non_blocking", False)}
        for name, value in self.items():
            self[name] = _moved(value, args, kwargs, moves)
        return self


def _stacked(name: str, value: Any, kind: str) -> Any:
    if isinstance(value, list | tuple):
        shapes = sorted({tuple(np.shape(item)) for item in value})
        if len(shapes) > 1:
            raise ValueError(
                f"{name} holds shapes {', '.join(map(str, shapes[:6]))}, which can't be one tensor. "
                f"Resize or crop to one size, or use return_tensors=None."
            )
        value = torch.stack(list(value)) if value and isinstance(value[0], torch.Tensor) else np.array(value)
    if kind == "pt":
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
    return np.asarray(value)


def _moved(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any], moves: dict[str, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return value.to(*args, **kwargs)
        return value if moves["device"] is None else value.to(**moves)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, args, kwargs, moves) for item in value)
    return value
