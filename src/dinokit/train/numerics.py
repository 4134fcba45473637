"""Precision of the objective: losses and targets are calculated in float32 or better, whatever autocast says."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself if float32 or float64, else in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def exactly(x: Tensor) -> torch.autocast:
    """A context without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype for matrix products of `x` here: autocast's, unless that is float16.

    Gradients of the losses are formed before any loss scaling, and float16 has not the range for them.
    """
    device = x.device.type
    chosen = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return at_least_float32(x[:0]).dtype if chosen == torch.float16 else chosen


# Numbers in flight where a calculation over (rows, prototypes) goes by groups of rows: 64 MiB in float32.
ELEMENTS_AT_ONCE = 1 << 24


def rows_at_once(width: int) -> int:
    """How many rows of `width` numbers to take at a time; at least one."""
    return max(1, ELEMENTS_AT_ONCE // max(width, 1))
