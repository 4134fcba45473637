"""`unfilled`: build a network for its shapes alone, to share parameters with another or to be given those of a file.

On the meta device nothing is allocated; random initialisation is left out, because PyTorch does it there through its compiler, whose
import alone takes longer than loading a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialisation(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """What is made inside has shapes and dtypes, and no values."""
    with torch.device("meta"), _NoInitialisation():
        yield
