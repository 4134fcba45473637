"""Compiled attention, in float32 and in integers, against float64, for any sizes and hard numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinokit import native
from dinokit.native import kernels
from tests.native.numbers import HALF, UNIT
from tests.tolerances import INT16_COSINE, SAME_MATH, max_error

pytestmark = pytest.mark.skipif(not native.available(), reason=native.missing())

EXP = 4 * UNIT  # relative error of an exponential
LEVELS, SOFTMAX_LEVELS, MILLION = 2047, 32767, 1e6  # of queries, keys, values; of the softmax; of its sum
Attend = Callable[[Tensor, int, float], Tensor]
BOTH = pytest.mark.parametrize("compiled", [native.attention, native.attention_int16])
sizes = {
    "batch": st.integers(1, 3),
    "tokens": st.one_of(st.integers(1, 70), st.sampled_from([1, 15, 16, 17, 47, 48, 49, 97, 261])),
    "heads": st.integers(1, 3),
    "width": st.sampled_from([16, 32, 64]),
}


def split(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (b heads t width), float64."""
    q, k, v = qkv.double().unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """In float64, word for word."""
    q, k, v = split(qkv, heads)
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)


@settings(max_examples=60, deadline=None)
@given(**sizes, loud=st.sampled_from([0.0, 1.0, 8.0]))
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


@settings(max_examples=60, deadline=None)
@given(**sizes, loud=st.sampled_from([0.0, 0.5, 1.5]))
def test_attention_in_integers_is_that_of_float64_but_for_half_a_step_of_each(batch, tokens, heads, width, loud):
    """12 bits of queries, keys and values, 15 of the softmax, or what leaves its sum at a million."""
    torch.manual_seed(tokens)
    qkv, scale = torch.randn(batch, tokens, 3 * heads * width), width**-0.5
    qkv[..., : 2 * heads * width] *= loud
    q, k, v = split(qkv, heads)
    q_error, k_error = (HALF * one.abs().amax(-1, keepdim=True) / LEVELS for one in (q, k))
    v_error = HALF * v.abs().amax(-2, keepdim=True) / LEVELS
    score_error = scale * (
        q.abs().sum(-1, keepdim=True) * k_error.mT + q_error * (k.abs().sum(-1)[..., None, :] + width * k_error.mT)
    )
    relative = torch.expm1(2 * score_error.amax(-1, keepdim=True) + 1e-5)
    p = (q @ k.mT * scale).softmax(-1)
    total = 1 / p.amax(-1, keepdim=True)  # the softmax's largest is 1 before it is divided
    lost = HALF / (SOFTMAX_LEVELS * total).clamp_max(MILLION) * (1 + relative)
    bound = relative * (p @ v.abs()) + lost * v.abs().sum(-2, keepdim=True) + v_error * (1 + tokens * lost + relative)
    got = native.attention_int16(qkv, heads, scale).double().unflatten(2, (heads, width)).transpose(1, 2)
    assert ((got - p @ v).abs() <= bound).all()


def probabilities(scores: Tensor, compiled: Attend) -> Tensor:
    """The softmax of a row of scores by a kernel, of the first 16 keys; queries, keys and values fit any format exactly."""
    qkv = torch.zeros(1, len(scores), 48)
    qkv[..., 0], qkv[0, :, 16], qkv[0, :16, 32:] = 1.0, scores, torch.eye(16)
    return compiled(qkv, 1, 1.0)[0, 0].double()


@pytest.mark.parametrize("height", [1.0, 10.0, 80.0])
def test_powers_are_exact_to_a_few_units_in_the_last_place(height):
    """Relative to the smallest of them, as far as scores have digits."""
    scores = torch.cat([torch.linspace(-height, 0, 1000), torch.zeros(15)])
    exact = scores.double().softmax(0)
    for start in range(0, 1000, 15):  # the last is their largest, 0
        order = torch.cat([torch.arange(start, 1015), torch.arange(start)])
        got = probabilities(scores[order], native.attention)
        expected = exact[order][:16]
        bound = (6 + 3 * scores[order][:16].abs().double()) * UNIT  # of the sum and quotient too
        assert ((got / expected - 1).abs() <= bound).all()


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(16, 400), height=st.sampled_from([0.0, 0.1, 1.0, 10.0]))
def test_a_softmax_in_integers_has_15_bits_or_a_sum_of_a_million(tokens, height):
    """Half such a level at most is lost, and what all of them lost is made up for in proportion."""
    torch.manual_seed(tokens)
    scores = -height * torch.rand(tokens)
    exact = scores.double().softmax(0)
    level = 1 / (SOFTMAX_LEVELS / exact.max()).clamp_max(MILLION)
    error = (probabilities(scores, native.attention_int16) - exact[:16]).abs()
    assert (error <= HALF * level + exact[:16] * (tokens * HALF * level + 2e-6)).all()


@pytest.mark.parametrize("tokens", [20, 261, 3000])
def test_what_all_tokens_say_is_what_integers_give(tokens):
    """However little each of them counts beside one: rounded probabilities are brought to a sum of 1."""
    qkv = torch.zeros(1, tokens, 48)
    qkv[..., 0], qkv[0, 1:, 16], qkv[..., 32:] = 1.0, -9.0, -2.5
    assert (native.attention_int16(qkv, 1, 1.0) + 2.5).abs().max() <= 1e-5


@pytest.mark.parametrize("tokens", [50, 261, 1374])
def test_attention_in_integers_keeps_directions(tokens):
    """Errors of levels are many and small: as good as the bound of whole networks."""
    torch.manual_seed(0)
    qkv = torch.randn(2, tokens, 3 * 128)
    got, expected = native.attention_int16(qkv, 2, 0.125), attention(qkv, 2, 0.125)
    assert F.cosine_similarity(got.double(), expected, dim=-1).min() >= INT16_COSINE
    assert not torch.equal(got, native.attention(qkv, 2, 0.125))


@pytest.mark.parametrize("tokens", [1, 30, 31, 32, 33, 261, 3000])
@pytest.mark.parametrize("loud", [0.0, 1.0])
@pytest.mark.parametrize("value", [3.0, -3.0])
def test_the_largest_sums_of_the_softmax_do_not_overflow(tokens, loud, value):
    """All values alike are their own average, however many there are."""
    torch.manual_seed(tokens)
    qkv = torch.randn(1, tokens, 48) * loud
    qkv[..., 32:] = value
    y = native.attention_int16(qkv, 1, 0.25)
    assert max_error(y / value, torch.ones_like(y)) <= tokens / SOFTMAX_LEVELS


def test_more_than_fits_integers_is_computed_in_float32(monkeypatch):
    """Wider heads, more tokens: `attention`, to the bit."""
    wide = torch.randn(1, 9, 3 * 272)
    assert torch.equal(native.attention_int16(wide, 1, 0.1), native.attention(wide, 1, 0.1))
    qkv = torch.randn(1, 11, 3 * 256)
    assert not torch.equal(native.attention_int16(qkv, 1, 0.1), native.attention(qkv, 1, 0.1))
    monkeypatch.setattr(kernels, "MOST_TOKENS", 10)
    assert torch.equal(native.attention_int16(qkv, 1, 0.1), native.attention(qkv, 1, 0.1))


@pytest.mark.parametrize("sign", [1, -1])
@BOTH
def test_scores_of_ten_thousand_choose_one_key(compiled, sign):
    """No overflow: each query gets the value of the key that it points at, or all values but that one's alike."""
    tokens, width = 16, 16
    q = torch.eye(tokens) * 1e4 * sign
    v = torch.randn(tokens, width)
    y = compiled(torch.cat([q, torch.eye(tokens), v], 1)[None], 1, 1.0)[0]
    others = (v.double().sum(0) - v.double()) / (tokens - 1)
    step = v.abs().amax(0) / LEVELS if compiled is native.attention_int16 else 0.0
    exact = 0.0 if compiled is native.attention and sign > 0 else SAME_MATH
    assert ((y - (v if sign > 0 else others)).abs() <= HALF * step + exact).all()


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(2, 70), shift=st.sampled_from([-8192.0, 8192.0]))
def test_what_all_scores_share_does_not_matter(tokens, shift):
    """Far from 0 scores weigh as near it, but for the digits that such numbers lack."""
    torch.manual_seed(tokens)
    q, k, v = torch.randn(3, tokens, 16)
    q[:, 0], k[:, 0] = 1.0, 0.0
    near = native.attention(torch.cat([q, k, v], 1)[None], 1, 0.25)
    k[:, 0] = shift
    digits = 32 * UNIT * abs(shift) / 4  # roundings of a sum of 16 at that height, of two scores
    assert max_error(native.attention(torch.cat([q, k, v], 1)[None], 1, 0.25), near) <= 2 * digits * v.abs().max()


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), heads=st.integers(1, 3), width=st.sampled_from([16, 32, 64]))
def test_one_token_gets_its_own_value(batch, heads, width):
    """To the bit."""
    torch.manual_seed(width)
    qkv = torch.randn(batch, 1, 3 * heads * width) * 100
    assert torch.equal(native.attention(qkv, heads, width**-0.5), qkv[..., 2 * heads * width :])


@BOTH
@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_token_spoils_its_own_head_of_its_own_image_only(compiled, part, bad):
    """A bad query its own result; a bad key that of every query; a bad value its channel; nothing else changes by a bit."""
    tokens, heads, width = 50, 2, 16
    qkv = torch.randn(3, tokens, 3 * heads * width)
    clean = compiled(qkv, heads, 0.25)
    qkv[1, 20, part * heads * width + width] = bad  # the first channel of the second head
    y, spoiled = compiled(qkv, heads, 0.25), torch.zeros(3, tokens, heads, width, dtype=torch.bool)
    spoiled[1, 20 if part == 0 else slice(None), 1, 0 if part == 2 else slice(None)] = True
    may = spoiled.flatten(2).clone()
    if compiled is native.attention and part == 1 and bad == float("inf"):
        spoiled[1, qkv[1, :, width] < 0] = False  # in float32 their score is minus infinity: no weight, no harm
    assert not torch.isfinite(y[spoiled.flatten(2)]).any()
    assert torch.isfinite(y[~spoiled.flatten(2)]).all()
    assert torch.equal(y[~may], clean[~may])


@BOTH
def test_attention_takes_what_is_not_contiguous_and_empty_batches(compiled):
    """As PyTorch's own does."""
    qkv = torch.randn(40, 2, 96)
    y = compiled(qkv.transpose(0, 1), 2, 0.25)
    assert torch.equal(y, compiled(qkv.transpose(0, 1).contiguous(), 2, 0.25))
    assert compiled(qkv[:0].transpose(0, 1), 2, 0.25).shape == (2, 0, 32)
    assert compiled(torch.empty(0, 5, 96), 2, 0.25).shape == (0, 5, 32)


@BOTH
@pytest.mark.parametrize(("channels", "heads"), [(3 * 24, 1), (3 * 32, 4), (3 * 40, 2), (100, 2), (97, 2)])
def test_heads_of_other_widths_are_refused(compiled, channels, heads):
    """They come in groups of 16 channels."""
    with pytest.raises(ValueError, match=f"{heads} heads of {channels} / 3 channels; heads must have a multiple of 16"):
        compiled(torch.randn(1, 5, channels), heads, 0.25)
