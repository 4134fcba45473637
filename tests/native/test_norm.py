"""Compiled layer norm against float64, for any sizes and hard numbers; what all kernels refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit import native
from tests.native.numbers import UNIT
from tests.tolerances import CLOSED_FORM, SAME_MATH, max_error

pytestmark = pytest.mark.skipif(not native.available(), reason=native.missing())

EPS = 1e-6


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 30),
    width=st.integers(1, 80),
    offset=st.sampled_from([0.0, 1.0, -30.0]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_norm_is_that_of_float64_but_for_rounding(rows, width, offset, size):
    """Any width, quiet and loud rows, rows far from 0."""
    torch.manual_seed(width)
    x, weight, bias = size * (torch.randn(rows, width) + offset), torch.randn(width), torch.randn(width)
    got, exact = native.norm(x, weight, bias, EPS).double(), x.double()
    spread = (exact.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    expected = (exact - exact.mean(-1, keepdim=True)) / spread * weight + bias
    # the mean's rounding, in units of the row's spread; then a few roundings of the result's parts
    mean_error = (width + 2) * UNIT * exact.abs().amax(-1, keepdim=True) / spread
    normed = ((exact - exact.mean(-1, keepdim=True)) / spread).abs()
    bound = (mean_error * (1 + normed * normed.amax(-1, keepdim=True)) + (width + 8) * UNIT * normed) * weight.abs()
    assert ((got - expected).abs() <= bound + UNIT * (expected.abs() + bias.abs())).all()


@pytest.mark.parametrize("width", [1, 7, 8, 33, 80])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 4096.0])
def test_a_constant_row_is_normed_to_the_bias(width, value):
    """Nothing is divided by 0."""
    bias = torch.randn(width)
    y = native.norm(torch.full((3, width), value), torch.ones(width), bias, EPS)
    assert max_error(y, bias.expand(3, width)) <= CLOSED_FORM


def test_norm_is_pytorch_s():
    """At a network's width."""
    x, weight, bias = torch.randn(2, 261, 768), torch.randn(768), torch.randn(768)
    assert max_error(native.norm(x, weight, bias, EPS), F.layer_norm(x, (768,), weight, bias, EPS)) <= 2 * SAME_MATH


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 32, 36])
def test_a_bad_row_is_normed_to_nan_alone(bad, where):
    """All of it, and no other."""
    x, weight, bias = torch.randn(9, 37), torch.randn(37), torch.randn(37)
    clean = native.norm(x, weight, bias, EPS)
    x[4, where] = bad
    y = native.norm(x, weight, bias, EPS)
    assert y[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(y[others], clean[others])


def test_norm_takes_what_is_not_contiguous():
    """As PyTorch's own does."""
    x, weight, bias = torch.randn(37, 9), torch.randn(37), torch.randn(37)
    assert torch.equal(native.norm(x.T, weight, bias, EPS), native.norm(x.T.contiguous(), weight, bias, EPS))


def test_other_dtypes_and_gradients_are_refused():
    """By attention and norm alike."""
    ones = torch.ones(48)
    calls = (
        lambda x: native.attention(x, 1, 0.25),
        lambda x: native.attention_int16(x, 1, 0.25),
        lambda x: native.norm(x, ones, ones, EPS),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"torch\.float64 on cpu; compiled kernels take float32 on the CPU"):
            call(torch.randn(1, 5, 48).double())
        with pytest.raises(ValueError, match="no gradients; use the network"):
            call(torch.randn(1, 5, 48, requires_grad=True))
