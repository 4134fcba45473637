"""Linear layers that are fixed once for inference: plain, packed for MKL, packed for oneDNN, 8-bit, dinokit's own kernels.

All have one interface: `layer(x)`, `layer.gelu(x)` (GELU fused where the library can), `layer.add(x, residual)`. Nothing here can be
trained or saved.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.native import After, Pack

# MKL's packed weights are good for one number of rows only; another is packed for after it came this often in a row.
REPACK_AFTER = 3


class FixedLinear(nn.Module):
    """Base: weight (out, in; on the meta device where a packed copy took its place) and bias, as buffers that no state dict holds."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """`x` through the layer."""
        return F.linear(x, self.weight, self.bias)

    def gelu(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The exact GELU of `x` through the layer."""
        return F.gelu(self(x))

    def add(self, x: Float[Tensor, "... in"], residual: Float[Tensor, "... out"]) -> Float[Tensor, "... out"]:
        """`residual` plus `x` through the layer, in the residual's dtype."""
        y: Tensor = self(x)
        return residual + y.to(residual.dtype)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in={self.weight.shape[1]}, out={self.weight.shape[0]}"


class InPlaceLinear(FixedLinear):
    """PyTorch's own multiplication, adding into the residual and activating in place. The residual must be the caller's own."""

    def gelu(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The exact GELU of `x` through the layer."""
        return torch.ops.aten.gelu_(self(x))  # type: ignore[no-any-return]

    def add(self, x: Float[Tensor, "... in"], residual: Float[Tensor, "... out"]) -> Float[Tensor, "... out"]:
        """`residual` itself, to which `x` through the layer was added."""
        if self.bias is not None:
            residual.add_(self.bias)
        residual.view(-1, residual.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.weight.t())
        return residual


class MklLinear(FixedLinear):
    """float32 with weights packed by MKL for the number of rows that comes; other numbers go the plain way."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        super().__init__(weight.contiguous(), bias)
        self._packed: tuple[int, Any] | None = None
        self._seen = (0, 0)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """`x` through the layer."""
        rows = x.numel() // x.shape[-1]
        packed = self._pack(rows)
        if packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkl._mkl_linear(x, packed, self.weight, self.bias, rows)  # type: ignore[no-any-return]

    def _pack(self, rows: int) -> Any:
        packed = self._packed
        if packed is not None and packed[0] == rows:
            return packed[1]
        last, count = self._seen
        self._seen = (rows, count + 1 if rows == last else 1)
        if packed is not None and self._seen[1] < REPACK_AFTER:
            return None
        made = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)
        self._packed = (rows, made)
        return made


class OneDnnLinear(FixedLinear):
    """Weights in oneDNN's own order, GELU fused. For bfloat16 on CPUs that multiply it."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, rows: int) -> None:
        super().__init__(torch.empty_like(weight, device="meta"), bias)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """`x` through the layer."""
        return self._run(x, "none", "")

    def gelu(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The exact GELU of `x` through the layer."""
        return self._run(x, "gelu", "none")

    def _run(self, x: Tensor, after: str, algorithm: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, after, [], algorithm)  # type: ignore[no-any-return]


class CompiledLinear(FixedLinear):
    """A matrix of `dinokit.native`, made by `pack`; GELU and addition are part of it. The residual must be the caller's own."""

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        pack: Pack,
        factor: Float[Tensor, " out"] | None = None,
    ) -> None:
        super().__init__(torch.empty_like(weight, device="meta"), bias)
        self._matrix = pack(weight, bias, factor)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """`x` through the layer."""
        return self._matrix(x)

    def gelu(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The exact GELU of `x` through the layer."""
        return self._matrix(x, After.GELU)

    def add(self, x: Float[Tensor, "... in"], residual: Float[Tensor, "... out"]) -> Float[Tensor, "... out"]:
        """`residual` itself, to which `x` through the layer was added."""
        return self._matrix(x, After.ADD, residual)


class Int8Linear(FixedLinear):
    """8-bit weights with a scale an output channel, 8-bit activations with a scale a token; sums in 32 bits, results in float32.

    Each token is brought to a largest magnitude of 1 before it is quantised, so that one token with high norm does not cost the others
    their precision. Without 8-bit dot products (VNNI) sums of two products saturate, so activations keep 7 bits there.
    """

    def __init__(
        self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, *, reduce_range: bool
    ) -> None:
        super().__init__(torch.empty_like(weight, device="meta"), bias)
        scales = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with warnings.catch_warnings():
            # the type that this operator packs is on its way out of PyTorch; `look` checks that it is still there
            warnings.filterwarnings("ignore", message=".*quantized tensor creation", category=UserWarning)
            quantized = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        self._reduce_range = reduce_range

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """`x` through the layer."""
        rows = x.reshape(-1, x.shape[-1])
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        # the operator takes its range from all it is given; one row that spans it makes the range, and so every result, independent
        # of the other tokens and images
        scaled = rows.new_zeros(len(rows) + 1, x.shape[-1])
        torch.div(rows, largest, out=scaled[:-1])
        scaled[-1, 0], scaled[-1, -1] = 1.0, -1.0
        y: Tensor = torch.ops.quantized.linear_dynamic(scaled, self._packed, self._reduce_range)[:-1]
        y = y.mul_(largest).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y.add_(self.bias)
