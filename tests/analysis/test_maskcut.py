"""TokenCut and MaskCut on the planted grid: closed forms of the cut, several objects, the rules that drop masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.analysis.maskcut import maskcut, normalized_cut, tokencut
from tests.analysis.planted_grid import HW, NUM_GROUND, NUM_OBJECT, OBJECT_BOX, features, object_mask, with_stray

EPS = 1e-5
OTHER_BOX = (6, 0, 8, 3)


def two_objects() -> torch.Tensor:
    """The object, a second one of 2 x 3 patches, and ground; all orthogonal."""
    feats = torch.zeros(64, 8, dtype=torch.float64)
    feats[:, 0] = 1
    for axis, box in ((1, OBJECT_BOX), (2, OTHER_BOX)):
        chosen = object_mask(box).flatten()
        feats[chosen] = 0
        feats[chosen, axis] = 1
    return feats


def test_l7_tokencut_has_the_eigenvalue_and_the_contrast_of_the_closed_form():
    """lambda_2 = eps m n (1/(m(m + eps n)) + 1/(n(n + eps m))) = 4.563914e-5, y_fg / y_bg = -18.777, the box exact."""
    m, n = NUM_OBJECT, NUM_GROUND
    expected = EPS * m * n * (1 / (m * (m + EPS * n)) + 1 / (n * (n + EPS * m)))
    found = tokencut(features(0.0), HW)
    assert expected == pytest.approx(4.563914e-5, rel=1e-6)
    assert found.eigenvalues[0] == pytest.approx(expected, rel=1e-6)
    y = found.maps["eigenvector"]
    assert float(y[3, 2] / y[0, 0]) == pytest.approx(-18.777, abs=5e-4)
    assert y[3, 2] > 0
    assert tuple(found.box) == OBJECT_BOX


def test_l7_tokencut_is_exact_in_spite_of_an_orthogonal_outlier():
    """Where LOST takes the outlier for its seed (L4)."""
    assert tuple(tokencut(with_stray(features(0.0)), HW).box) == OBJECT_BOX
    assert tuple(maskcut(with_stray(features(0.0)), HW).box) == OBJECT_BOX


@settings(max_examples=20, deadline=None)
@given(left=st.integers(0, 4), top=st.integers(0, 4), width=st.integers(1, 4), height=st.integers(1, 4))
def test_tokencut_finds_any_box_of_less_than_half_the_image(left, top, width, height):
    """At every place, in the corners too."""
    box = (left, top, left + width, top + height)
    assert tuple(tokencut(features(0.0, object_mask(box)), HW).box) == box


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tokencut_moves_with_a_flip_of_the_image(seed):
    """Mirrored features give the mirrored eigenvector and mask."""
    feats = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    here = tokencut(feats.view(42, 5), (6, 7))
    there = tokencut(feats.flip(1).reshape(42, 5), (6, 7))
    y = here.maps["eigenvector"]
    top = y.abs().flatten().sort(descending=True).values
    if top[0] - top[1] < 1e-6 * top[0] or ((y - y.mean()).abs() < 1e-9).any():
        return
    if (y - there.maps["eigenvector"].flip(1)).abs().max() > 1e-6:  # an eigenvalue of multiplicity two
        return
    assert torch.equal(here.mask, there.mask.flip(1))


def test_masked_tokens_are_never_part_of_an_object():
    """And the mean that divides the eigenvector is that of the others."""
    mask = torch.ones(64, dtype=torch.bool)
    mask[3 * 8 + 2] = False
    found = tokencut(features(0.0), HW, token_mask=mask)
    assert int(found.mask.sum()) == 11
    assert not found.mask[3, 2]


def test_maskcut_finds_several_objects_one_after_the_other():
    """Two planted objects, each exactly; the third round repeats and is dropped."""
    found = maskcut(two_objects(), HW, rounds=4)
    assert {tuple(box) for box in found.boxes} == {OBJECT_BOX, OTHER_BOX}
    assert found.masks.shape == (2, 8, 8)
    assert len(found.seeds) == len(found.eigenvalues) == len(found.maps) == 2
    assert len(maskcut(two_objects(), HW, rounds=1).boxes) == 1


def test_maskcut_drops_masks_that_repeat_an_earlier_one():
    """One object gives one mask, however many rounds."""
    assert [tuple(box) for box in maskcut(features(0.0), HW, rounds=5).boxes] == [OBJECT_BOX]


def test_maskcut_drops_masks_of_at_most_one_percent():
    """A patch of 100 is dropped from the second round on; two patches are kept."""
    for size, kept in ((1, 1), (2, 2)):
        feats = torch.zeros(100, 4, dtype=torch.float64)
        feats[:, 0] = 1
        feats[44:47] = torch.tensor([0.0, 1, 0, 0], dtype=torch.float64)
        feats[54:57] = torch.tensor([0.0, 1, 0, 0], dtype=torch.float64)
        feats[10 : 10 + size] = torch.tensor([0.0, 0, 1, 0], dtype=torch.float64)
        assert len(maskcut(feats, (10, 10), rounds=2).boxes) == kept


def test_maskcut_takes_the_other_side_if_three_corners_lie_on_the_first():
    """A frame around a large middle: TokenCut takes the frame, MaskCut what it frames."""
    middle = object_mask((1, 1, 7, 7))
    feats = features(0.0, middle)
    assert not tokencut(feats, HW).mask[4, 4]
    assert torch.equal(maskcut(feats, HW).masks[0], middle)


def test_one_token_is_an_object_and_nonsense_is_refused():
    """A photograph of one patch has an answer; no rounds and no links have none."""
    assert tuple(tokencut(torch.ones(1, 3), (1, 1)).box) == (0, 0, 1, 1)
    assert tuple(maskcut(torch.ones(1, 3), (1, 1)).box) == (0, 0, 1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        maskcut(features(0.0), HW, rounds=0)
    with pytest.raises(ValueError, match="eps > 0"):
        normalized_cut(features(0.0), 0.2, 0.0)
