"""Compiled attention and layer norm against float64, for any sizes and hard numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinokit import native
from tests.native.numbers import UNIT
from tests.tolerances import CLOSED_FORM, SAME_MATH, max_error

pytestmark = pytest.mark.skipif(not native.available(), reason=native.missing())

EPS = 1e-6
EXP = 4 * UNIT  # relative error of an exponential


def split(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (b heads t width), float64."""
    q, k, v = qkv.double().unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """In float64, word for word."""
    q, k, v = split(qkv, heads)
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 70), st.sampled_from([1, 15, 16, 17, 47, 48, 49, 97, 261])),
    heads=st.integers(1, 3),
    width=st.sampled_from([16, 32, 64]),
    loud=st.sampled_from([0.0, 1.0, 8.0]),
)
def test_attention_is_that_of_float64_but_for_rounding(batch, tokens, heads, width, loud):
    """Flat, usual and peaked scores; numbers of tokens that fill registers and pieces, and that do not."""
    torch.manual_seed(tokens)
    qkv, scale = torch.randn(batch, tokens, 3 * heads * width), width**-0.5
    qkv[..., : 2 * heads * width] *= loud
    q, k, v = split(qkv, heads)
    # a score's rounding moves its probability by as much, relatively; sums of probabilities round once a key
    score_error = (width + 3) * UNIT * (q.abs() @ k.abs().mT * scale).amax(-1)
    bound = 2 * (2 * score_error + EXP + 2 * tokens * UNIT) * v.abs().amax((-2, -1))[..., None]
    error = (native.attention(qkv, heads, scale).double() - attention(qkv, heads, scale)).abs()
    assert (error.unflatten(2, (heads, width)).amax(-1).transpose(1, 2) <= bound).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_ten_thousand_choose_one_key(sign):
    """No overflow: each query gets the value of the key that it points at, or all values but that one's alike."""
    tokens, width = 16, 16
    q = torch.eye(tokens) * 1e4 * sign
    v = torch.randn(tokens, width)
    y = native.attention(torch.cat([q, torch.eye(tokens), v], 1)[None], 1, 1.0)[0]
    others = (v.double().sum(0) - v.double()) / (tokens - 1)
    assert max_error(y, v if sign > 0 else others.float()) <= (0 if sign > 0 else SAME_MATH)


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(2, 70), shift=st.sampled_from([-1e4, 1e4]))
def test_what_all_scores_share_does_not_matter(tokens, shift):
    """Scores near +-10000 weigh as those near 0, but for the digits that such numbers lack."""
    torch.manual_seed(tokens)
    width = 16
    q, k, v = torch.randn(3, tokens, width)
    q[:, 0], k[:, 0] = 1.0, 0.0
    k = (k * 64).round() / 64
    q = (q * 64).round() / 64
    plain = native.attention(torch.cat([q, k, v], 1)[None], 1, 1.0)
    k[:, 0] = shift
    assert max_error(native.attention(torch.cat([q, k, v], 1)[None], 1, 1.0), plain) <= 1e-2


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 3), width=st.sampled_from([16, 32, 64]))
def test_one_token_gets_its_own_value(batch, heads, width):
    """To the bit."""
    torch.manual_seed(width)
    qkv = torch.randn(batch, 1, 3 * heads * width) * 100
    assert torch.equal(native.attention(qkv, heads, width**-0.5), qkv[..., 2 * heads * width :])


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_token_spoils_its_own_head_of_its_own_image_only(part, bad):
    """A bad query its own result; a bad key or value that of every query; nothing else changes by a bit."""
    tokens, heads, width = 50, 2, 16
    qkv = torch.randn(3, tokens, 3 * heads * width)
    clean = native.attention(qkv, heads, 0.25)
    there = part * heads * width + width  # the first channel of the second head
    qkv[1, 20, there] = bad
    y, spoiled = native.attention(qkv, heads, 0.25), torch.zeros(3, tokens, heads, width, dtype=torch.bool)
    queries = slice(20, 21) if part == 0 else slice(None)
    # an infinite key may have a score of minus infinity: no weight, no harm
    if part == 1 and bad == float("inf"):
        queries = qkv[1, :, width] > 0
    spoiled[1, queries, 1, 0 if part == 2 else slice(None)] = True
    spoiled = spoiled.flatten(2)
    assert not torch.isfinite(y[spoiled]).any()
    if part == 1 and bad == float("inf"):
        assert torch.isfinite(y[~spoiled]).all()
        untouched = torch.ones_like(spoiled)
        untouched[1, :, width:] = False
    else:
        untouched = ~spoiled
    assert torch.equal(y[untouched], clean[untouched])


def test_attention_takes_what_is_not_contiguous_and_empty_batches():
    """As PyTorch's own does."""
    qkv = torch.randn(40, 2, 96)
    y = native.attention(qkv.transpose(0, 1), 2, 0.25)
    assert torch.equal(y, native.attention(qkv.transpose(0, 1).contiguous(), 2, 0.25))
    assert native.attention(qkv[:0].transpose(0, 1), 2, 0.25).shape == (2, 0, 32)
    assert native.attention(torch.empty(0, 5, 96), 2, 0.25).shape == (0, 5, 32)


@pytest.mark.parametrize(("channels", "heads"), [(3 * 24, 1), (3 * 32, 4), (3 * 40, 2), (100, 2), (97, 2)])
def test_heads_of_other_widths_are_refused(channels, heads):
    """They come in groups of 16 channels."""
    with pytest.raises(ValueError, match=f"{heads} heads of {channels} / 3 channels; heads must have a multiple of 16"):
        native.attention(torch.randn(1, 5, channels), heads, 0.25)


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
    calls = (lambda x: native.attention(x, 1, 0.25), lambda x: native.norm(x, ones, ones, EPS))
    for call in calls:
        with pytest.raises(ValueError, match=r"torch\.float64 on cpu; compiled kernels take float32 on the CPU"):
            call(torch.randn(1, 5, 48).double())
        with pytest.raises(ValueError, match="no gradients; use the network"):
            call(torch.randn(1, 5, 48, requires_grad=True))
