"""Equal inputs give equal bits: in any batch, on any number of threads, in the first product and in later ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinokit import native
from dinokit.engine import Plan, optimize
from dinokit.native import After, FloatMatrix
from tests.model.test_vit import make
from tests.native.numbers import MATRICES, made

pytestmark = pytest.mark.skipif(not native.available(), reason=native.missing())

PLANS = {name: Plan(linear=name, in_place=True) for name in ("avx2", "avx2-int16", "avx2-int8")}
THREADS = (1, 2, 3)


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """Tests here set the number of threads; others keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on_threads(function: Callable[[], Tensor]) -> list[Tensor]:
    """What `function` gives on each number of threads."""
    results = []
    for count in THREADS:
        torch.set_num_threads(count)
        results.append(function())
    return results


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("after", After)
@settings(max_examples=10, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 60), st.integers(250, 600)),
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 600),
    data=st.data(),
)
def test_a_row_s_product_depends_on_nothing_but_the_row(kind, after, rows, outputs, inputs, data):
    """Alone, among others, on one thread or more."""
    case = made(rows, outputs, inputs, rows + outputs + inputs)
    matrix = MATRICES[kind](case.weight, case.bias, case.factor)
    first, *others = on_threads(lambda: matrix(case.x, after, case.residual.clone()))
    assert all(torch.equal(first, other) for other in others)
    start = data.draw(st.integers(0, rows - 1))
    part = slice(start, data.draw(st.integers(start + 1, rows)))
    assert torch.equal(matrix(case.x[part], after, case.residual[part].clone()), first[part])
    assert torch.equal(matrix(case.x[start], after, case.residual[start].clone()), first[start])


@pytest.mark.parametrize("threads", THREADS)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 300), outputs=st.integers(1, 70), inputs=st.integers(1, 300), extras=st.booleans())
def test_the_first_product_reads_weights_in_place_and_gives_the_bits_of_later_ones(
    threads, rows, outputs, inputs, extras
):
    """Weights are the matrix's own once they are packed: what becomes of the given ones does not matter."""
    torch.set_num_threads(threads)
    case = made(rows, outputs, inputs, rows + outputs, extras=extras)
    matrix = FloatMatrix(case.weight, case.bias, case.factor)
    first, second = matrix(case.x), matrix(case.x)
    assert torch.equal(second, first)
    for given_ in (case.weight, case.bias, case.factor):
        if given_ is not None:
            given_.fill_(float("nan"))
    assert torch.equal(matrix(case.x), first)


@pytest.mark.parametrize("kind", ["int16", "int8"])
def test_integer_weights_are_the_matrix_s_own_at_once(kind):
    """Nothing is shared with who gave them."""
    case = made(9, 32, 40, 0)
    expected = case.run(kind)
    matrix = MATRICES[kind](case.weight, case.bias, case.factor)
    for given_ in (case.weight, case.bias, case.factor):
        given_.fill_(float("nan"))
    assert torch.equal(matrix(case.x), expected)


@pytest.mark.parametrize("kind", MATRICES)
def test_threads_that_use_a_new_matrix_at_once_get_its_bits(kind):
    """Whoever reads in place, packs, or finds the panels made: one result."""
    case = made(5, 40, 64, 0)
    expected = case.run(kind)
    together = Barrier(4)

    def use(matrix: native.Matrix) -> bool:
        together.wait()
        return all(torch.equal(matrix(case.x), expected) for _ in range(3))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(150):
                matrix = MATRICES[kind](case.weight, case.bias, case.factor)
                assert all(pool.map(use, [matrix] * 4))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("attention", [native.attention, native.attention_int16])
@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 4), tokens=st.integers(1, 120), heads=st.integers(1, 3), width=st.sampled_from([16, 32, 64])
)
def test_an_image_s_attention_depends_on_nothing_but_the_image(attention, batch, tokens, heads, width):
    """Alone, among others, on one thread or more."""
    torch.manual_seed(tokens)
    qkv = torch.randn(batch, tokens, 3 * heads * width)
    first, *others = on_threads(lambda: attention(qkv, heads, width**-0.5))
    assert all(torch.equal(first, other) for other in others)
    for image, expected in zip(qkv, first, strict=True):
        assert torch.equal(attention(image[None], heads, width**-0.5)[0], expected)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 60), width=st.integers(1, 80))
def test_a_row_s_norm_depends_on_nothing_but_the_row(rows, width):
    """Alone, among others, on one thread or more."""
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, width), torch.randn(width), torch.randn(width)
    first, *others = on_threads(lambda: native.norm(x, weight, bias, 1e-6))
    assert all(torch.equal(first, other) for other in others)
    assert all(
        torch.equal(native.norm(row, weight, bias, 1e-6), expected) for row, expected in zip(x, first, strict=True)
    )


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_an_image_s_tokens_depend_on_nothing_but_the_image(tiny, name, ffn):
    """The whole network, to the bit: alone or in a batch, first pass or later, on one thread or more, next to a damaged image."""
    model = make(tiny.replace(ffn=ffn, depth=3))
    images = torch.randn(5, 3, 70, 84)
    expected = optimize(model, plan=PLANS[name])(images).sequence
    fast = optimize(model, plan=PLANS[name])
    for image, tokens in zip(images, expected, strict=True):
        assert torch.equal(fast(image[None]).sequence[0], tokens)
    assert all(torch.equal(tokens, expected) for tokens in on_threads(lambda: fast(images).sequence))
    images[2, 1, 30, 40] = float("nan")
    tokens = fast(images).sequence
    assert tokens[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(tokens[others], expected[others])
