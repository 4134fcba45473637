"""The affinity and the eigensolver that all methods of object discovery share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.analysis.affinity import affinity, checked_mask, eigenvectors, first_peak


def random_features(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_affinity_applies_its_steps_in_the_documented_order():
    """Cosine, then bias, then relu, then threshold, then the mask."""
    feats = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    assert affinity(feats, kind="dot")[0].tolist() == [4.0, 0.0, -2.0]
    assert affinity(feats)[0].tolist() == [1.0, 0.0, -1.0]
    assert affinity(feats, bias=0.5)[0].tolist() == [1.5, 0.5, -0.5]
    assert affinity(feats, bias=0.5, relu=True)[0].tolist() == [1.5, 0.5, 0.0]
    assert affinity(feats, bias=0.5, threshold=0.5, eps=0.25)[0].tolist() == [1.0, 0.25, 0.25]
    mask = torch.tensor([True, False, True])
    assert affinity(feats, token_mask=mask).tolist() == [[1, 0, -1], [0, 0, 0], [-1, 0, 1]]


def test_affinity_is_symmetric_to_the_bit_and_computed_in_float32_or_better():
    """Half-precision tokens do not cost accuracy twice."""
    feats = random_features(50).float()
    weights = affinity(feats)
    assert torch.equal(weights, weights.T)
    assert affinity(feats.bfloat16()).dtype == torch.float32
    assert affinity(feats.double()).dtype == torch.float64


def test_a_zero_vector_agrees_with_nothing():
    """Not NaN."""
    feats = random_features(3)
    feats[1] = 0
    assert affinity(feats)[1].abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "l2"}, "cosine, dot"),
        ({"token_mask": torch.ones(2, dtype=torch.bool)}, r"expected \(3,\)"),
        ({"token_mask": torch.ones(3)}, "torch.bool"),
        ({"token_mask": torch.zeros(3, dtype=torch.bool)}, "leaves no token"),
    ],
)
def test_affinity_refuses_what_it_cannot_mean(change, message):
    """With the rule in the message."""
    with pytest.raises(ValueError, match=message):
        affinity(random_features(3), **change)


def test_features_that_are_not_finite_are_refused():
    """NaN would pass every comparison as false."""
    with pytest.raises(ValueError, match="NaN or infinite"):
        affinity(torch.tensor([[float("nan")]]))
    assert checked_mask(None, 3).tolist() == [True] * 3


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 20), seed=st.integers(0, 1000))
def test_eigenvectors_solve_the_generalised_problem(n, seed):
    """(D - W) y = lambda D y, y'Dy = 1, ascending, the first constant: to rounding."""
    weights = affinity(random_features(n, seed=seed), relu=True)
    values, vectors = eigenvectors(weights, n)
    degree = torch.diag(weights.sum(dim=1))
    residual = (degree - weights) @ vectors - degree @ vectors * values
    assert residual.abs().max() < 1e-9
    assert (vectors.T @ degree @ vectors - torch.eye(n, dtype=torch.float64)).abs().max() < 1e-9
    assert values[0] == 0
    assert (values[1:] >= values[:-1] - 1e-12).all()
    assert vectors[:, 0].std() < 1e-12


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 20), seed=st.integers(0, 1000))
def test_eigenvectors_move_with_a_permutation_of_the_tokens(n, seed):
    """The order of patches carries no meaning; signs are part of the promise."""
    feats = random_features(n, seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    values, vectors = eigenvectors(affinity(feats, relu=True), 2)
    again, moved = eigenvectors(affinity(feats[order], relu=True), 3)
    if again[2] - again[1] < 1e-6:  # any basis of a shared eigenspace is right
        return
    assert (again[:2] - values).abs().max() < 1e-9
    top = vectors[:, 1].abs().sort(descending=True).values
    if top[0] - top[1] > 1e-6:
        assert (moved[:, 1] - vectors[order, 1]).abs().max() < 1e-6


def test_parts_without_a_link_come_out_as_the_first_vector():
    """A graph in two pieces has two vectors of value 0; the one that is not constant tells them apart."""
    weights = torch.block_diag(torch.ones(3, 3), torch.ones(5, 5))
    values, vectors = eigenvectors(weights, 2)
    assert values.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert vectors[:3, 1].std() < 1e-12
    assert vectors[3:, 1].std() < 1e-12
    assert vectors[0, 1] > 0 > vectors[7, 1]


def test_tokens_without_any_link_take_no_part():
    """A masked token gets 0 and changes nothing for the others."""
    feats = random_features(9)
    mask = torch.ones(9, dtype=torch.bool)
    mask[4] = False
    whole = eigenvectors(affinity(feats, relu=True, token_mask=mask), 3)
    part = eigenvectors(affinity(feats[mask], relu=True), 3)
    assert whole.vectors[4].tolist() == [0, 0, 0]
    assert torch.equal(whole.vectors[mask], part.vectors)


def test_eigenvectors_agree_with_the_solver_of_scipy():
    """Another implementation of the same generalised problem, up to sign."""
    linalg = pytest.importorskip("scipy.linalg")
    weights = affinity(random_features(30, seed=3), threshold=0.2).numpy()
    degree = np.diag(weights.sum(axis=1))
    expected, other = linalg.eigh(degree - weights, degree)
    values, vectors = eigenvectors(torch.from_numpy(weights), 4)
    assert np.abs(values.numpy() - expected[:4]).max() < 1e-10
    assert np.abs(np.abs(vectors.numpy()) - np.abs(other[:, :4])).max() < 1e-7


def test_eigenvectors_refuse_graphs_that_are_none():
    """Negative weights have no cut; more vectors than tokens do not exist."""
    with pytest.raises(ValueError, match="at least 0"):
        eigenvectors(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), 1)
    with pytest.raises(ValueError, match="5 eigenvectors of 2 linked"):
        eigenvectors(torch.ones(2, 2), 5)


def test_the_first_of_equal_peaks_wins():
    """Rounding does not choose the seed."""
    assert first_peak(torch.tensor([0.0, 1.0, 1.0 + 1e-12], dtype=torch.float64)) == 1
    assert first_peak(torch.tensor([-2.0, -1.0])) == 1
