"""Every tolerance of the suite, in one table: largest absolute difference that still counts as equal."""

from __future__ import annotations

import torch

EXACT = 0.0
ORACLE = 2e-5  # another implementation, float32, the project's bar
RECORDED = 2e-5  # recorded outputs of other implementations (tests/fixtures/formats)
CLOSED_FORM = 2e-5  # float32 against a closed form in float64
COMPILED = 1e-5  # the same model through torch.compile, torch.export, onnxruntime
SAME_MATH = 2e-6  # the same numbers in another order of summation
REDUCED = {torch.bfloat16: 5e-2, torch.float16: 5e-3}  # against float32

FAST = 2e-5  # the fast form of a network in float32 against the network
# smallest cosine of a token to float32's
REDUCED_COSINE = {torch.bfloat16: 0.9995}
INT16_COSINE = 0.9999
INT8_COSINE = 0.998
INT8_GATED_COSINE = 0.99  # where one quantised half multiplies another


def max_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference; shapes must agree and both must be finite."""
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    assert torch.isfinite(a).all(), "first tensor is not finite"
    assert torch.isfinite(b).all(), "second tensor is not finite"
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
