"""Reading the recorded numbers of the reference, and how close is equal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

# error = max |ours - recorded| / max |recorded|; see tests/fixtures/ssl/README.md
FLOAT32, FLOAT64 = 1e-5, 2e-7
STEP_FLOAT32, STEP_FLOAT64 = 3e-5, 2e-7
NEAR_DUPLICATES = {torch.float32: 1e-3, torch.float64: 1e-6}
ACCEPT = {torch.float32: FLOAT32, torch.float64: FLOAT64}
DTYPES = (torch.float32, torch.float64)


class Recorded:
    """Arrays of one file as tensors of one precision; integers and masks as they are."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.arrays, self.dtype = np.load(path), dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = torch.from_numpy(np.asarray(self.arrays[name]))
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def number(self, name: str) -> float:
        return float(self.arrays[name])

    def number_at(self, name: str, index: int) -> float:
        return float(self.arrays[name][index])

    def names(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name in self.arrays.files if name.startswith(prefix)]


def relative_error(ours: torch.Tensor, recorded: torch.Tensor) -> float:
    """Largest difference, in units of the largest recorded number."""
    assert ours.shape == recorded.shape, f"shapes differ: {tuple(ours.shape)} and {tuple(recorded.shape)}"
    assert torch.isfinite(ours).all(), "not finite"
    difference = (ours.detach().double() - recorded.double()).abs().max().item()
    return difference / max(recorded.double().abs().max().item(), 1e-300)


def assert_equal(ours: torch.Tensor, recorded: torch.Tensor, accept: float | None = None) -> None:
    """Within the accepted error of the precision in which `ours` was calculated."""
    accept = ACCEPT[ours.dtype] if accept is None else accept
    assert relative_error(ours, recorded) <= accept


def leaves(*tensors: torch.Tensor) -> Iterable[torch.Tensor]:
    """Copies that collect gradients."""
    return [tensor.clone().requires_grad_() for tensor in tensors]
