"""Weights for the kernels: a `Matrix`, which multiplies, in float32 or in integers.

int16: 12 bits for weights (a scale an output channel) and inputs (a scale a token). int8: 8 bits for weights, 7 for inputs (a scale
and a zero a token). Sums are exact integers; what they are worth is float32. A `factor` for each output channel is LayerScale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import IntEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int8, Int16
from torch import Tensor

from dinokit.native.kernels import PANEL, checked, pointer, size, threads
from dinokit.native.library import library


class After(IntEnum):
    """What follows the product: nothing, the exact GELU, or its addition to what `out` holds."""

    NOTHING = 0
    GELU = 1
    ADD = 2


class Matrix(ABC):
    """y = factor * (x W') + factor * b for tokens `x`."""

    def __init__(
        self,
        weight: Float32[Tensor, "out in"],
        bias: Float32[Tensor, " out"] | None,
        factor: Float32[Tensor, " out"] | None = None,
    ) -> None:
        self.outputs, self.inputs = weight.shape
        self._factor = torch.ones(self.outputs) if factor is None else factor.clone()
        self._bias = _padded(self._factor * (0.0 if bias is None else bias))
        self._take(weight)

    def __call__(
        self, x: Float32[Tensor, "... in"], after: After = After.NOTHING, out: Float32[Tensor, "... out"] | None = None
    ) -> Float32[Tensor, "... out"]:
        """The product; `out` must be given for `After.ADD`, and is then what is returned.

        Raises:
            ValueError: `x` has another width, is not float32 on the CPU or wants gradients; `out` does not fit.
        """
        x = checked(x)
        if x.shape[-1] != self.inputs:
            raise ValueError(f"the input has {x.shape[-1]} channels; this layer takes {self.inputs}.")
        shape = (*x.shape[:-1], self.outputs)
        if out is None:
            if after == After.ADD:
                raise ValueError("there is nothing to add the product to; give `out`.")
            out = x.new_empty(shape)
        elif out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"the output is {out.dtype} {tuple(out.shape)}; it must be contiguous float32 {shape}.")
        self._multiply(x, x.numel() // self.inputs, after, out)
        return out

    @abstractmethod
    def _take(self, weight: Tensor) -> None:
        """Keep the weights, as they will be needed."""

    @abstractmethod
    def _multiply(self, x: Tensor, rows: int, after: After, out: Tensor) -> None: ...


class FloatMatrix(Matrix):
    """Weights as they are. The first product reads them in place, so that one image does not pay for packing; then they are packed."""

    def _take(self, weight: Tensor) -> None:
        self._weight, self._used = weight.contiguous(), False
        self._panels: Float32[Tensor, "panels in 16"] | None = None

    def _multiply(self, x: Tensor, rows: int, after: After, out: Tensor) -> None:
        weight = self._weight  # before the panels are looked at: whoever makes them empties it after
        panels = self._pack(weight) if self._used else self._panels
        self._used = True
        room = x.new_empty(torch.get_num_threads(), self.inputs, PANEL) if panels is None else panels
        library().dinokit_linear_f32(
            pointer(x), pointer(weight) if panels is None else None, pointer(self._factor), pointer(room),
            pointer(self._bias), pointer(out), size(rows), size(self.outputs), size(self.inputs), int(after), threads(),
        )  # fmt: skip

    def _pack(self, weight: Tensor) -> Tensor:
        """The panels, made now if they are not there. Threads that meet here make the same twice."""
        panels = self._panels
        if panels is None:
            panels = torch.empty(-(-self.outputs // PANEL), self.inputs, PANEL)
            library().dinokit_pack_f32(
                pointer(weight), pointer(self._factor), pointer(panels), size(self.outputs), size(self.inputs),
                threads(),
            )  # fmt: skip
            self._panels = panels
            self._weight = torch.empty(0)
        return panels


class IntegerMatrix(Matrix):
    """Weights as integers, packed at once."""

    levels: int
    dtype: torch.dtype
    inputs_dtype: torch.dtype
    group: int  # inputs that one instruction multiplies and adds
    name: str

    def _take(self, weight: Tensor) -> None:
        scales = (weight.abs().amax(dim=1) / self.levels).clamp_min(torch.finfo(torch.float32).tiny)
        integers = (weight / scales[:, None]).round_().clamp_(-self.levels, self.levels)
        self._totals = _padded(integers.sum(dim=1, dtype=torch.float64).float())
        self._scales = _padded(scales * self._factor)
        self._panels = _panels(integers.to(self.dtype), self.group)

    def _multiply(self, x: Tensor, rows: int, after: After, out: Tensor) -> None:
        integers = torch.empty(rows, self._panels.shape[1] * self.group, dtype=self.inputs_dtype)
        scales = x.new_empty(rows, 2)
        getattr(library(), self.name)(
            pointer(x), pointer(integers), pointer(scales), pointer(self._panels), pointer(self._scales),
            pointer(self._totals), pointer(self._bias), pointer(out), size(rows), size(self.outputs), size(self.inputs),
            int(after), threads(),
        )  # fmt: skip


class Int16Matrix(IntegerMatrix):
    """12 bits on both sides."""

    levels, dtype, inputs_dtype, group = 2047, torch.int16, torch.int16, 2
    name = "dinokit_linear_i16"


class Int8Matrix(IntegerMatrix):
    """8 bits for weights, 7 for inputs."""

    levels, dtype, inputs_dtype, group = 127, torch.int8, torch.uint8, 4
    name = "dinokit_linear_i8"


Pack = Callable[[Tensor, Tensor | None, Tensor | None], Matrix]


def _panels(weight: Int16[Tensor, "out in"] | Int8[Tensor, "out in"], group: int) -> Tensor:
    """(outputs / 16, inputs / group, 16, group); zeros past either end."""
    outputs, inputs = weight.shape
    whole: Tensor = F.pad(weight, (0, -inputs % group, 0, -outputs % PANEL))
    panels: Tensor = whole.unflatten(0, (-1, PANEL)).unflatten(2, (-1, group))
    return panels.permute(0, 2, 1, 3).contiguous()


def _padded(values: Tensor) -> Tensor:
    """A copy of whole panels, so that nothing is shared with who gave it."""
    return F.pad(values, (0, -len(values) % PANEL)).clone()
