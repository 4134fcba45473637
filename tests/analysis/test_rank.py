"""How many directions features use."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.analysis.rank import rankme
from dinokit.evals import metrics

CLOSE = 1e-4  # the paper's 1e-7 beside each share


def test_equal_directions_are_counted():
    """r directions of the same length are rank r, whatever stands beside them; copies of one row are 1."""
    for r in (1, 3, 8):
        assert rankme(torch.eye(10, 8)[:, :r] * 5) == pytest.approx(r, rel=CLOSE)
    assert rankme(torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).expand(50, -1)) == pytest.approx(
        1, rel=CLOSE
    )


@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_it_is_that_of_the_spectrum(seed, scale):
    """Chosen singular values, turned both ways and scaled: exp of their shares' entropy."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(5, generator=generator, dtype=torch.float64) + 0.01
    left, right = (torch.linalg.qr(torch.randn(n, 5, generator=generator, dtype=torch.float64)).Q for n in (12, 7))
    shares = values / values.sum()
    expected = torch.exp(-(shares * shares.log()).sum()).item()
    assert rankme(scale * left @ torch.diag(values) @ right.T) == pytest.approx(expected, rel=CLOSE)


@pytest.mark.parametrize("features", [torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(4, 0)])
def test_nothing_has_no_rank(features):
    """Neither no features, nor zeros."""
    with pytest.raises(ValueError, match="no rank"):
        rankme(features)


def test_evaluations_count_the_same():
    """One definition."""
    assert metrics.rankme is rankme
