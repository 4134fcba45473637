"""Losses against their formulas, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinokit.train.finetune.losses import gradient_loss, mixed_cross_entropy, pixel_cross_entropy, sig_loss


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    predicted, true = (torch.rand(2, 13, 15, generator=generator, dtype=torch.float64) + 0.2 for _ in range(2))
    return predicted, true, torch.rand(2, 13, 15, generator=generator) < 0.8


def test_sig_loss_is_its_formula(maps):
    """sqrt(var + 0.15 mean^2) of log differences over the valid pixels; while warming, without the variance."""
    p, t, v = maps
    g = np.log(p.numpy()[v.numpy()] + 1e-3) - np.log(t.numpy()[v.numpy()] + 1e-3)
    assert sig_loss(p, t, v).item() == pytest.approx(math.sqrt(np.var(g, ddof=1) + 0.15 * g.mean() ** 2))
    assert sig_loss(p, t, v, warming=True).item() == pytest.approx(math.sqrt(0.15) * abs(g.mean()))


def test_gradient_loss_is_its_formula(maps):
    """Four strides, pixels two apart along rows and columns, valid at both ends; written as loops."""
    p, t, v = (x.numpy() for x in maps)
    total = 0.0
    for stride in (1, 2, 4, 6):
        a, b, m = (x[:, ::stride, ::stride] for x in (p, t, v))
        part = 0.0
        for i, y, x in np.ndindex(*m.shape):
            for y2, x2 in ((y + 2, x), (y, x + 2)):
                if y2 < m.shape[1] and x2 < m.shape[2] and m[i, y, x] and m[i, y2, x2]:
                    ratio = [math.log(a[i, j, k] + 1e-3) - math.log(b[i, j, k] + 1e-3) for j, k in ((y, x), (y2, x2))]
                    part += abs(ratio[0] - ratio[1])
        total += part / m.sum()
    assert gradient_loss(*maps).item() == pytest.approx(total)


def test_invalid_pixels_have_no_gradient(maps):
    """Whatever they hold, also zeros; and without a valid one all is 0 and finite."""
    p, t, v = maps
    p.requires_grad_()
    t = torch.where(v, t, 0.0)
    (sig_loss(p, t, v) + gradient_loss(p, t, v)).backward()
    assert torch.isfinite(p.grad).all()
    assert (p.grad[~v] == 0).all()
    assert (p.grad[v] != 0).any()
    p.grad = None
    none = torch.zeros_like(v)
    total = sig_loss(p, t, none) + gradient_loss(p, t, none)
    total.backward()
    assert total.item() == 0
    assert (p.grad == 0).all()


def test_a_perfect_depth_costs_nothing_and_has_a_finite_slope(maps):
    """A root has none at 0."""
    _, t, v = maps
    p = t.clone().requires_grad_()
    loss = sig_loss(p, t, v) + gradient_loss(p, t, v)
    loss.backward()
    assert loss.item() < 1e-5
    assert torch.isfinite(p.grad).all()


def test_ignored_pixels_do_not_count():
    """The mean is over the others; where all are ignored it is 0."""
    scores, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0] = 255
    assert pixel_cross_entropy(scores, labels).item() == pytest.approx(
        F.cross_entropy(scores[1:], labels[1:]).item(), rel=1e-5
    )
    assert pixel_cross_entropy(scores, torch.full_like(labels, 255)).item() == 0


def test_mixed_labels_equal_soft_targets():
    """Cross-entropy is linear in its targets."""
    logits, a, b = torch.randn(5, 4), torch.randint(0, 4, (5,)), torch.randint(0, 4, (5,))
    soft = 0.3 * F.one_hot(a, 4) + 0.7 * F.one_hot(b, 4)
    expected = F.cross_entropy(logits, soft.float(), label_smoothing=0.1)
    assert mixed_cross_entropy(logits, a, b, 0.3, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)
