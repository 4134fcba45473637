"""Gram anchoring: a closed form, NumPy, what it does not see, and who learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.train.gram import gram, gram_loss


def test_the_loss_of_two_patches_is_that_of_their_cosine():
    """Cosines a and b: 2 (a - b)^2 of 4 entries."""
    for a, b in ((0.0, 1.0), (0.5, -0.5), (1.0, 1.0)):
        student = torch.tensor([[[2.0, 0.0], [3 * a, 3 * (1 - a * a) ** 0.5]]], dtype=torch.float64)
        anchor = torch.tensor([[[0.0, 5.0], [(1 - b * b) ** 0.5, b]]], dtype=torch.float64)
        assert gram_loss(student, anchor).item() == pytest.approx((a - b) ** 2 / 2, abs=1e-12)


def test_the_loss_is_its_formula():
    """Image by image and pair by pair, with another width on the other side."""
    rng = np.random.default_rng(0)
    s, g = rng.normal(size=(3, 5, 4)), rng.normal(size=(3, 5, 7))
    losses = []
    for x, y in zip(s, g, strict=True):
        for i in range(5):
            for j in range(5):
                a = x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])
                b = y[i] @ y[j] / np.linalg.norm(y[i]) / np.linalg.norm(y[j])
                losses.append((a - b) ** 2)
    found = gram_loss(torch.from_numpy(s), torch.from_numpy(g))
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-10)


@given(st.integers(0, 2**31 - 1))
def test_turned_and_scaled_features_cost_nothing(seed):
    """Only what is alike counts, not where it points or how long it is."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    lengths = torch.rand(2, 6, 1, generator=generator, dtype=torch.float64) + 0.1
    assert gram_loss(lengths * (x @ turn), x).item() == pytest.approx(0, abs=1e-12)
    assert torch.allclose(gram(x).diagonal(dim1=1, dim2=2), torch.ones((), dtype=torch.float64))


def test_the_student_alone_learns():
    """And a step down its gradient lowers the loss."""
    s, g = (torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = gram_loss(s, g)
    loss.backward()
    assert g.grad is None
    with torch.no_grad():
        assert gram_loss(s - 1e-2 * s.grad, g) < loss
