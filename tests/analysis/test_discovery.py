"""LOST on a planted grid, with the numbers that follow from its definition; components and boxes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.analysis.components import Box, box_of, component_at, label_components, largest_component, pixel_box
from dinokit.analysis.corloc import iou
from dinokit.analysis.discovery import lost
from tests.analysis.planted_grid import HW, OBJECT_BOX, STRAY, features, object_mask, with_stray

WHOLE = (0, 0, 8, 8)


def overlap(found) -> Fraction:
    return iou(found.box, OBJECT_BOX)


@pytest.mark.parametrize("cosine", [0.0, -0.2, -0.9])
def test_l1_an_object_that_disagrees_with_its_ground_is_found_exactly(cosine):
    """IoU 1; degrees 11 and 51; the seed and all 12 object patches expand."""
    found = lost(features(cosine), HW)
    assert overlap(found) == 1
    assert found.degree.unique().tolist() == [11.0, 51.0]
    assert torch.equal(found.degree == 11, object_mask())
    assert torch.equal(found.mask, object_mask())
    assert found.seed == 3 * 8 + 2
    assert found.expansion[object_mask()].tolist() == pytest.approx([12.0] * 12)
    assert found.similarity.flatten()[found.seed] == pytest.approx(1.0)


@pytest.mark.parametrize("bias", [0.0, -0.2])
def test_l2_features_that_all_agree_give_the_whole_image(bias):
    """IoU 12/64 = 0.1875, all degrees 63: what happens to DINOv2 keys without a bias."""
    found = lost(features(0.3), HW, bias=bias)
    assert tuple(found.box) == WHOLE
    assert overlap(found) == Fraction(12, 64)
    assert found.degree.unique().tolist() == [63.0]


@pytest.mark.parametrize(
    ("bias", "works"), [(-0.31, True), (-0.5, True), (-0.99, True), (-1.0, False), (-1.2, False), (-0.29, False)]
)
def test_l3_a_bias_works_between_minus_one_and_minus_the_cosine(bias, works):
    """-1 < bias <= -c."""
    assert (overlap(lost(features(0.3), HW, bias=bias)) == 1) is works


def test_l3_the_bias_works_at_its_boundary():
    """bias = -c turns the agreement into 0, which is not above 0; the paper's rule counts it."""
    assert overlap(lost(features(0.25), HW, bias=-0.25)) == 1
    assert tuple(lost(features(0.25), HW, bias=-0.25, mode="paper").box) == WHOLE


def test_l4_an_orthogonal_outlier_becomes_the_seed_and_masking_it_repairs_the_box():
    """Degree 0: one patch, IoU 0; without that token, IoU 1."""
    feats = with_stray(features(-0.2))
    found = lost(feats, HW)
    assert found.seed == STRAY
    assert found.degree.flatten()[STRAY] == 0
    assert tuple(found.box) == (7, 7, 8, 8)
    assert overlap(found) == 0
    masked = lost(feats, HW, token_mask=torch.arange(64) != STRAY)
    assert overlap(masked) == 1
    assert masked.degree.flatten()[STRAY] == masked.expansion.flatten()[STRAY] == 0


def test_a_masked_patch_of_the_object_is_not_part_of_its_mask():
    """Though it agrees with all the others."""
    mask = torch.arange(64) != 3 * 8 + 2
    found = lost(features(-0.2), HW, token_mask=mask)
    assert torch.equal(found.mask.flatten(), object_mask().flatten() & mask)


def test_l5_an_outlier_that_agrees_a_little_with_everything_gives_the_whole_image():
    """Its norm outweighs all; fewer helpers or unit length restore the box; unit length with a bias is L4 again."""
    feats = with_stray(features(-0.2), cosine=0.05)
    assert overlap(lost(feats, HW)) == Fraction(12, 64)
    assert overlap(lost(feats, HW, k=10)) == 1
    assert overlap(lost(feats, HW, normalize=True)) == 1
    again = lost(feats, HW, normalize=True, bias=-0.2)
    assert again.seed == STRAY
    assert overlap(again) == 0


def test_l6_an_object_of_more_than_half_the_image_gives_the_background():
    """A known failure: degrees 21 and 41, the seed lies on the smaller side."""
    mask = object_mask((1, 1, 7, 8))
    found = lost(features(0.0, mask), HW)
    assert found.degree.unique().tolist() == [21.0, 41.0]
    assert not mask.flatten()[found.seed]
    assert not (found.mask & mask).any()


def test_l10_boxes_end_where_the_image_ends():
    """Patches of padding take part; a box never reaches into the padding."""
    assert pixel_box(Box(1, 2, 8, 8), 14, (100, 108)) == (14, 28, 108, 100)
    assert pixel_box(Box(7, 7, 8, 8), 14, (100, 108)) == (98, 98, 108, 100)


def test_the_paper_counts_the_token_itself_and_agreement_of_zero():
    """Degrees one higher than in the published code, and the same box where nothing is exactly 0."""
    reference, paper = lost(features(-0.2), HW), lost(features(-0.2), HW, mode="paper")
    assert torch.equal(paper.degree, reference.degree + 1)
    assert torch.equal(paper.mask, reference.mask)
    assert tuple(lost(features(0.0), HW, mode="paper").box) == WHOLE


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bias=st.floats(-0.5, 0.5), cosine=st.booleans())
def test_lost_moves_with_a_flip_of_the_image(seed, bias, cosine):
    """Mirrored features give mirrored maps, and the mirrored box where the seed is the only one of its degree."""
    feats = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    here = lost(feats.view(42, 5), (6, 7), bias=bias, normalize=cosine)
    there = lost(feats.flip(1).reshape(42, 5), (6, 7), bias=bias, normalize=cosine)
    assert torch.equal(here.degree, there.degree.flip(1))
    if int((here.degree == here.degree.min()).sum()) == 1:
        assert torch.equal(here.mask, there.mask.flip(1))
        assert (here.expansion - there.expansion.flip(1)).abs().max() < 1e-9
        assert there.box == Box(7 - here.box.right, here.box.top, 7 - here.box.left, here.box.bottom)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 1000))
def test_without_a_bias_lost_does_not_depend_on_the_scale_of_the_features(seed, scale):
    """Only signs of sums count."""
    feats = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.equal(lost(feats, (5, 6)).mask, lost(feats * scale, (5, 6)).mask)


def test_every_type_of_numbers_gives_the_same_box():
    """float16 and bfloat16 tokens are computed in float32."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert overlap(lost(features(-0.2, dtype=dtype), HW)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k >= 1"),
        ({"mode": "code"}, "reference, paper"),
        ({"hw": (8, 9)}, "8 x 9 patches"),
        ({"token_mask": torch.zeros(64, dtype=torch.bool)}, "no token"),
    ],
)
def test_lost_refuses_what_does_not_fit(change, message):
    """With the rule in the message."""
    with pytest.raises(ValueError, match=message):
        lost(features(0.0), **{"hw": HW, **change})


def test_unstable_order_is_there_for_comparison_with_the_published_code():
    """Any token of the lowest degree may be the seed; on the planted grid all give the same box."""
    assert overlap(lost(features(0.0), HW, stable=False)) == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 9), width=st.integers(1, 9))
def test_components_are_those_of_scipy(seed, height, width):
    """4-connected, numbered in reading order."""
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(seed).random((height, width)) < 0.6
    expected, count = ndimage.label(mask)
    labels = label_components(torch.from_numpy(mask))
    assert np.array_equal(labels.numpy(), expected)
    sizes = np.bincount(expected.ravel(), minlength=1)[1:]
    largest = largest_component(torch.from_numpy(mask))
    assert int(largest.sum()) == (sizes.max() if count else 0)


def test_boxes_are_half_open_and_components_diagonal_neighbours_apart():
    """Width is right - left; touching corners do not connect."""
    mask = torch.eye(3, dtype=torch.bool)
    assert box_of(component_at(mask, 4)) == (1, 1, 2, 2)
    assert box_of(mask) == (0, 0, 3, 3)
    assert box_of(component_at(mask, 1)) == (1, 0, 2, 1), "a cell outside of the mask stands alone"
    with pytest.raises(ValueError, match="no box"):
        box_of(torch.zeros(2, 2, dtype=torch.bool))
