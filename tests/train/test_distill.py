"""Distillation of features: the losses against NumPy, gradients, other grids and widths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.train.distill import (
    Adapter,
    Features,
    adapter_between,
    feature_loss,
    feature_terms,
    on_grid,
    standardised,
    whole_patches,
)

KINDS = ("smooth_l1", "mse", "cosine", "cosine_mse")


def numpy_loss(s: np.ndarray, t: np.ndarray, kind: str) -> float:
    """Token by token, channel by channel."""
    losses = []
    for a, b in zip(s.reshape(-1, s.shape[-1]), t.reshape(-1, t.shape[-1]), strict=True):
        u = (b - b.mean()) / np.sqrt(b.var() + 1e-6)
        cosine = 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        if kind == "smooth_l1":
            errors = [e * e / 4 if e <= 2 else e - 1 for e in np.abs(a - u)]
            losses.append(np.mean(errors))
        else:
            losses.append(
                {"mse": np.mean((a - u) ** 2), "cosine": cosine, "cosine_mse": cosine + np.mean((a - b) ** 2)}[kind]
            )
    return float(np.mean(losses))


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_loss_is_its_formula(kind):
    """In double precision, with errors on both sides of where they begin to count linearly."""
    rng = np.random.default_rng(0)
    s, t = 3 * rng.normal(size=(2, 5, 7)), rng.normal(size=(2, 5, 7)) + 1
    found = feature_loss(torch.from_numpy(s), torch.from_numpy(t), kind)
    assert found.item() == pytest.approx(numpy_loss(s, t, kind), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_what_equals_the_target_costs_nothing_and_the_teacher_learns_nothing(kind):
    """Zero at the target; no gradient for the teacher."""
    t = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    target = standardised(t) if kind in ("smooth_l1", "mse") else t
    assert feature_loss(target.detach(), t, kind).item() == pytest.approx(0, abs=1e-12)
    s = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    feature_loss(s, t, kind).backward()
    assert t.grad is None
    assert s.grad.abs().sum() > 0


def test_only_what_both_have_is_compared():
    """Class tokens without patches, and the other way round."""
    tokens = Features(torch.randn(2, 4), torch.randn(2, 3, 4))
    assert feature_terms(Features(tokens.classes), tokens).patches is None
    terms = feature_terms(tokens, Features(None, tokens.patches), "cosine")
    assert terms.classes is None
    assert terms.patches.item() == pytest.approx(0, abs=1e-6)


def test_an_adapter_bridges_widths():
    """Linear, with a hidden layer, or none, which needs equal widths."""
    x = torch.randn(2, 3, 5)
    for kind, tensors in (("linear", 4), ("mlp", 8)):
        found = Adapter(5, 9, kind)(x[:, 0], x)
        assert (found.classes.shape, found.patches.shape) == ((2, 9), (2, 3, 9))
        assert len(list(Adapter(5, 9, kind).parameters())) == tensors
    assert adapter_between(5, 5, "none") is None
    assert Adapter(5, 9, patches=False)(x[:, 0], x).patches is None
    with pytest.raises(ValueError, match=r"5 wide and the teacher 9: .*distill.adapter=linear"):
        adapter_between(5, 9, "none")


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_another_grid_keeps_constants_and_the_same_one_everything(rows, columns, side):
    """Bilinear weights sum to 1."""
    patches = torch.randn(2, rows * columns, 3)
    assert on_grid(patches, (rows, columns), (rows, columns)) is patches
    flat = torch.ones(1, rows * columns, 2) * torch.tensor([2.0, -1.0])
    assert torch.allclose(on_grid(flat, (rows, columns), (side, side)), flat[:, :1].expand(1, side * side, 2))


def test_a_grid_halved_is_a_weighted_mean_of_neighbours():
    """With antialiasing: a triangle over four patches each way, 1 3 3 1, cut and normed at the border."""
    maps = torch.randn(1, 16, 1, dtype=torch.float64)
    weights = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    expected = weights @ maps.view(4, 4).numpy() @ weights.T
    assert np.allclose(on_grid(maps, (4, 4), (2, 2)).view(2, 2).numpy(), expected, atol=1e-12)


def test_crops_are_brought_to_whole_patches():
    """As they are where they fit; the nearest size elsewhere; enlarged where asked."""
    crops = torch.randn(1, 3, 16, 16)
    assert whole_patches(crops, 4) is crops
    assert whole_patches(crops, 6).shape[-2:] == (18, 18)
    assert whole_patches(crops, 40).shape[-2:] == (40, 40)
    assert whole_patches(crops, 4, scale=2).shape[-2:] == (32, 32)
