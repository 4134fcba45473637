"""Values that are not finite are found wherever they are, whatever surrounds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.errors import WeightsError
from dinokit.weights.convert import _check_values

BAD = (float("nan"), float("inf"), -float("inf"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@given(
    st.integers(1, 70_000), st.integers(0), st.lists(st.sampled_from(BAD), min_size=1, max_size=3), st.sampled_from(DTYPES),
    st.sampled_from((0.0, 1.0, 1e30, torch.finfo(torch.float32).max)),
)  # fmt: skip
def test_no_value_that_is_not_finite_escapes(size, place, bad, dtype, scale):
    """At any place, several that could cancel each other, among values of any size that the type holds."""
    values = np.random.default_rng(size).uniform(-scale, scale, size)
    tensor = torch.from_numpy(values).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
    for step, value in enumerate(bad):
        tensor[(place + 977 * step) % size] = value
    count = int((~torch.isfinite(tensor)).sum())
    with pytest.raises(WeightsError, match=rf"t has {count:,} of {size:,} values that are NaN or infinite"):
        _check_values("t", tensor, "x")


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_values_pass_though_their_sum_overflows(dtype):
    """The largest values of a type, many times."""
    _check_values("t", torch.full((5000,), torch.finfo(dtype).max, dtype=dtype), "x")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_checked_too(dtype):
    """NaN is the one value that all of these types have."""
    _check_values("t", torch.ones(9).to(dtype), "x")
    with pytest.raises(WeightsError, match="1 of 9"):
        _check_values("t", torch.tensor([1.0] * 8 + [float("nan")]).to(dtype), "x")
