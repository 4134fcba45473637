"""Compiled matrices give the product within what their number format loses, for any sizes; what can be exact is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit import native
from dinokit.native import After, FloatMatrix, Int8Matrix
from tests.native.numbers import (
    GELU_ERROR,
    MATRICES,
    UNIT,
    Case,
    allowed,
    by_levels,
    followed,
    made,
    quantisation_bound,
    rounding_bound,
)
from tests.tolerances import INT8_COSINE

pytestmark = pytest.mark.skipif(not native.available(), reason=native.missing())

INTEGERS = {kind: matrix for kind, matrix in MATRICES.items() if kind != "float32"}
rows_, outputs_ = st.integers(1, 60), st.integers(1, 70)
inputs_ = st.one_of(st.integers(1, 1100), st.sampled_from([1, 2, 3, 31, 33, 511, 512, 513, 1024, 1025]))
cases = st.builds(
    made,
    rows_,
    outputs_,
    inputs_,
    st.integers(0, 2**32 - 1),
    shape=st.sampled_from(["normal", "one-sided", "loud"]),
    extras=st.booleans(),
)


@pytest.mark.parametrize("after", After)
@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_float32_products_are_those_of_float64_but_for_rounding(after, case):
    """Any sizes, with bias and LayerScale or without; alone, through GELU, or added."""
    y = case.product()
    error = (case.run("float32", after).double() - followed(y, after, case.residual)).abs()
    assert (error <= allowed(rounding_bound(case), y, after, case.residual)).all()


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("after", After)
@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_integer_products_are_those_of_float64_but_for_half_a_step_on_each_side(kind, after, case):
    """12 bits and 12 bits, or 8 and 7: never further than the nearest levels allow."""
    y = case.product()
    error = (case.run(kind, after).double() - followed(y, after, case.residual)).abs()
    assert (error <= allowed(quantisation_bound(case, kind), y, after, case.residual)).all()


@pytest.mark.parametrize("kind", INTEGERS)
@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_integer_products_are_those_of_the_documented_levels(kind, case):
    """A scale an output channel, a scale (and a zero) a token, exact sums: float32 only rounds what they are worth."""
    expected, bound = by_levels(case, kind)
    assert ((case.run(kind).double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("kind", INTEGERS)
@settings(max_examples=25, deadline=None)
@given(
    rows=rows_,
    outputs=outputs_,
    inputs=st.integers(2, 1040),
    exponents=st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_the_levels_hold_exactly_is_multiplied_exactly(kind, rows, outputs, inputs, exponents, seed):
    """Whole numbers whose largest is the largest level, times powers of two: the product of int64, to the bit."""
    torch.manual_seed(seed)
    largest = 2047 if kind == "int16" else 127
    x, weight = torch.randint(-20, 21, (rows, inputs)), torch.randint(-20, 21, (outputs, inputs))
    weight[torch.arange(outputs), torch.randint(inputs, (outputs,))] = (
        largest * torch.randint(0, 2, (outputs,)) * 2 - largest
    )
    if kind == "int16":
        x[torch.arange(rows), torch.randint(inputs, (rows,))] = -largest
    else:
        x[:, 0], x[:, -1] = 77, 77 - largest  # 127 apart
    bias = torch.randint(-1000, 1000, (outputs,))
    step = torch.tensor(2.0).pow(torch.tensor(exponents))
    matrix = INTEGERS[kind](weight * step[1], bias * step.prod())
    assert torch.equal(matrix(x * step[0]), (x @ weight.T + bias) * step.prod())


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_largest_sums_there_can_be_neither_overflow_nor_saturate(kind, signs):
    """3072 products of the largest levels, all of one sign."""
    x, weight = torch.full((7, 3072), 0.5 * signs[0]), torch.full((33, 3072), 0.25 * signs[1])
    got = INTEGERS[kind](weight, None)(x).double()
    assert ((got / (x.double() @ weight.double().T) - 1).abs() <= 8 * UNIT).all()


def test_8_bit_inputs_use_all_levels_whatever_their_signs():
    """128 neighbouring whole numbers stay apart, above 0, below it, or around it."""
    x = torch.arange(128.0) - torch.tensor([0.0, 1.0, 50.0, 63.0, 64.0, 126.0, 127.0])[:, None]
    assert torch.equal(Int8Matrix(torch.eye(128), None)(x), x)


@pytest.mark.parametrize("kind", MATRICES)
def test_rows_and_weights_of_zeros_give_the_bias(kind):
    """No division by a largest magnitude of 0."""
    weight, bias = torch.randn(20, 40), torch.randn(20)
    weight[3] = 0
    x = torch.randn(5, 40)
    x[2] = 0
    y = MATRICES[kind](weight, bias)(x)
    assert torch.equal(y[2], bias)
    assert torch.equal(y[:, 3], bias[3].expand(5))


@pytest.mark.parametrize("kind", MATRICES)
def test_tiny_and_huge_rows_stay_finite(kind):
    """From float32's smallest numbers to near its largest."""
    weight = torch.randn(20, 40)
    x = torch.randn(4, 40) * torch.tensor([1e-44, 1e-38, 1e-30, 1e35])[:, None]
    y = MATRICES[kind](weight, None)(x)
    assert torch.isfinite(y).all()
    expected = F.normalize(x[2:].double() @ weight.double().T, eps=0.0)
    assert (F.normalize(y[2:].double(), eps=0.0) * expected).sum(1).min() > INT8_COSINE


def test_gelu_is_the_exact_one_from_minus_to_plus_infinity():
    """Every magnitude, infinities and NaN as PyTorch has them."""
    x = torch.cat([torch.linspace(-12, 12, 24001), torch.logspace(-38, 38, 400), -torch.logspace(-38, 38, 400)])
    one = FloatMatrix(torch.ones(1, 1), None)
    y = one(x[:, None], After.GELU)[:, 0]
    expected = F.gelu(x.double())
    smallest = torch.finfo(torch.float32).tiny  # below it are fewer digits
    assert ((y.double() - expected).abs() <= GELU_ERROR * x.double().abs() + smallest).all()
    special = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -3e38, 3e38])
    torch.testing.assert_close(one(special[:, None], After.GELU)[:, 0], F.gelu(special), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 17, 42])
def test_a_bad_token_is_bad_alone(kind, bad, where):
    """Its own row says so, all of it where it is quantised; the other rows keep their bits."""
    case = made(20, 33, 43, 0)
    matrix = MATRICES[kind](case.weight, case.bias, case.factor)
    clean = matrix(case.x)
    x = case.x.clone()
    x[7, where] = bad
    y = matrix(x)
    assert not torch.isfinite(y[7]).any()
    assert kind == "float32" or y[7].isnan().all()
    others = torch.arange(20) != 7
    assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("kind", MATRICES)
def test_inputs_may_lie_in_any_order_and_have_any_number_of_axes(kind):
    """Strided, transposed, expanded, one token, none."""
    case = made(24, 33, 40, 0)
    matrix = MATRICES[kind](case.weight, case.bias)
    y = matrix(case.x)
    assert torch.equal(matrix(case.x.T.contiguous().T), y)
    assert torch.equal(matrix(torch.stack([case.x, -case.x], 1)[:, 0]), y)
    assert torch.equal(matrix(case.x.view(2, 3, 4, 40)), y.view(2, 3, 4, 33))
    assert torch.equal(matrix(case.x[3]), y[3])
    assert torch.equal(matrix(case.x[3].expand(5, 40)), y[3].expand(5, 33))
    assert matrix(case.x[:0]).shape == (0, 33)


@pytest.mark.parametrize("kind", MATRICES)
def test_the_result_is_written_where_it_should_be(kind):
    """`out` is what is returned; what it held counts only where it is added to."""
    case = made(9, 33, 40, 0)
    matrix = MATRICES[kind](case.weight, case.bias)
    y = matrix(case.x)
    out = torch.full((9, 33), float("nan"))
    assert matrix(case.x, out=out) is out
    assert torch.equal(out, y)
    out = case.residual.clone()
    assert matrix(case.x, After.ADD, out) is out
    assert torch.equal(out, case.residual + y)


@pytest.mark.parametrize("kind", MATRICES)
def test_what_a_matrix_cannot_do_it_refuses(kind):
    """Other dtypes, gradients, other widths, results that do not fit: each with the value."""
    matrix, x = MATRICES[kind](torch.randn(5, 8), None), torch.randn(3, 8)
    for other in (torch.float64, torch.bfloat16, torch.int32):
        with pytest.raises(ValueError, match=f"{other} on cpu; compiled kernels take float32 on the CPU"):
            matrix(x.to(other))
    with pytest.raises(ValueError, match="no gradients"):
        matrix(x.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(matrix(x.clone().requires_grad_()), matrix(x))
    with pytest.raises(ValueError, match="7 channels; this layer takes 8"):
        matrix(x[:, :7])
    with pytest.raises(ValueError, match="give `out`"):
        matrix(x, After.ADD)
    for out in (torch.zeros(3, 6), torch.zeros(15), torch.zeros(3, 5).double(), torch.zeros(5, 3).T):
        with pytest.raises(ValueError, match=r"must be contiguous float32 \(3, 5\)"):
            matrix(x, After.ADD, out)


def test_int16_is_more_exact_than_int8_by_about_its_bits():
    """Four and five bits more: an error at least ten times smaller."""
    case = made(50, 64, 768, 0)
    errors = {kind: (case.run(kind).double() - case.product()).norm() for kind in MATRICES}
    assert errors["float32"] * 10 < errors["int16"]
    assert errors["int16"] * 10 < errors["int8"]


@pytest.mark.parametrize("kind", MATRICES)
def test_layer_scale_multiplies_weights_and_bias(kind):
    """By a power of two exactly; by 0 to nothing."""
    case = made(9, 33, 40, 0)
    factor = torch.tensor([2.0, -0.5, 0.0]).repeat(11)
    scaled = Case(case.x, case.weight, case.bias, factor, case.residual).run(kind)
    plain = Case(case.x, case.weight, case.bias, None, case.residual).run(kind)
    assert torch.equal(scaled, plain * factor)
