"""Deep spectral object and regions on planted grids: sign, eigengap, background."""

from __future__ import annotations

import pytest
import torch

from dinokit.analysis.spectral import background_label, deep_spectral, eigen_segments, eigengap
from tests.analysis.planted_grid import HW, OBJECT_BOX, features, object_mask


@pytest.mark.parametrize("cosine", [-0.5, 0.0, 0.3, 0.9])
def test_the_object_is_found_whether_or_not_it_is_linked_to_its_ground(cosine):
    """No bias to choose: two pieces without a link, and pieces of one graph."""
    found = deep_spectral(features(cosine), HW)
    assert tuple(found.box) == OBJECT_BOX
    assert torch.equal(found.mask, object_mask())
    assert found.mask.flatten()[found.seed]


def test_the_object_is_the_side_with_fewer_patches():
    """The sign of an eigenvector is arbitrary, this rule is not."""
    for box in (OBJECT_BOX, (0, 0, 8, 5)):
        mask = deep_spectral(features(0.3, object_mask(box)), HW).mask
        assert int(mask.sum()) <= 32
        assert torch.equal(mask, object_mask(box)) is (box == OBJECT_BOX)


@pytest.mark.parametrize("seed", range(20))
def test_at_most_half_of_the_patches_are_positive(seed):
    """Also where the most extreme patch lies on the larger side."""
    feats = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))
    assert int((deep_spectral(feats, HW).maps["eigenvector 1"] > 0).sum()) <= 32


def test_the_value_of_the_cut_is_the_closed_form():
    """Two blocks of m and n tokens with weights 1 within and c between: lambda = c n / (m + c n) + c m / (n + c m)."""
    m, n, c = 12, 52, 0.3
    of_object, of_ground = m + c * n, n + c * m
    expected = c * n / of_object + c * m / of_ground
    assert deep_spectral(features(c), HW).eigenvalues[0] == pytest.approx(expected, abs=1e-9)


def regions(count: int) -> torch.Tensor:
    """Vertical stripes of equal features, orthogonal up to a common part."""
    stripe = torch.arange(8).repeat(8) * count // 8
    feats = 0.3 * torch.ones(64, 8, dtype=torch.float64)
    feats[torch.arange(64), stripe] += 1
    return feats


@pytest.mark.parametrize("count", [2, 4, 8])
def test_as_many_regions_are_found_as_there_are(count):
    """By the largest jump of the eigenvalues; each stripe one label."""
    found = eigen_segments(regions(count), HW)
    assert found.num == count
    stripes = torch.arange(8) * count // 8
    for stripe in range(count):
        assert len(found.labels[:, stripes == stripe].unique()) == 1
    assert found.labels.unique().tolist() == list(range(count))


def test_the_number_of_regions_can_be_given():
    """And tokens left out belong to none."""
    mask = torch.ones(64, dtype=torch.bool)
    mask[5] = False
    found = eigen_segments(regions(4), HW, 4, token_mask=mask)
    assert found.num == 4
    assert (found.labels == -1).sum() == 1
    with pytest.raises(ValueError, match="2 to that number"):
        eigen_segments(regions(4), HW, 1)


def test_segments_are_the_same_every_time():
    """Nothing random is left to chance."""
    feats = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(eigen_segments(feats, HW, 5).labels, eigen_segments(feats, HW, 5).labels)


def test_the_background_holds_most_of_the_border():
    """Each border cell counted once; tokens left out not at all."""
    assert eigen_segments(features(0.3), HW).background == 0
    labels = torch.zeros(4, 4, dtype=torch.int64)
    labels[1:3, 1:3] = 1
    assert background_label(labels) == 0
    assert background_label(1 - labels) == 1
    assert background_label(torch.where(labels == 0, -1, labels)) == 0


def test_the_eigengap_needs_three_values_and_gives_at_least_two_groups():
    """One group is no partition."""
    assert eigengap(torch.tensor([0.0, 0.9, 0.91, 0.92], dtype=torch.float64)) == 2
    assert eigengap(torch.tensor([0.0, 0.1, 0.2, 0.8, 0.9], dtype=torch.float64)) == 3
    with pytest.raises(ValueError, match="at least 3"):
        eigengap(torch.zeros(2, dtype=torch.float64))


def test_one_token_is_an_object():
    """A photograph of one patch."""
    assert tuple(deep_spectral(torch.ones(1, 3), (1, 1)).box) == (0, 0, 1, 1)
