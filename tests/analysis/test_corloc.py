"""CorLoc is exact at its boundary, and the baselines beside it are what they say."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dinokit.analysis.corloc import CorLoc, Score, centre_box, corloc, iou, is_hit, whole_box

HALF, FULL = [0, 0, 10, 10], [0, 0, 10, 20]


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint8, np.float16, np.float32, np.float64])
def test_l8_an_iou_of_exactly_one_half_is_a_hit_in_every_type_of_numbers(dtype):
    """Code that adds a small number to the union misses it in float64."""
    half, full = np.array(HALF, dtype), np.array(FULL, dtype)
    assert iou(half, full) == Fraction(1, 2)
    assert is_hit(half, [full])
    assert is_hit(torch.from_numpy(half.astype(np.float32)), [torch.from_numpy(full.astype(np.float32))])
    assert not is_hit([0, 0, 10, 9], [FULL])
    assert corloc([half], [[full]], [(20, 10)]).method == Score(1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_l8_holds_for_tensors(dtype):
    """Half precision too."""
    assert is_hit(torch.tensor(HALF, dtype=dtype), [torch.tensor(FULL, dtype=dtype)])


@given(st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_iou_equals_the_count_of_shared_pixels(numbers):
    """Against boxes painted as masks."""
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in (numbers[:4], numbers[4:])]
    masks = np.zeros((2, 50, 50), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    union = int((masks[0] | masks[1]).sum())
    expected = Fraction(int((masks[0] & masks[1]).sum()), union) if union else Fraction(0)
    assert iou(*boxes) == iou(*boxes[::-1]) == expected


def test_l9_the_whole_image_hits_where_the_object_covers_half_of_it():
    """200 painted images: the baseline is the share whose object covers at least half, counted on the masks."""
    rng = np.random.default_rng(0)
    truths, sizes, boxes, covered = [], [], [], 0
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(20, 60, 2))
        tall, wide = int(rng.integers(8, height + 1)), int(rng.integers(8, width + 1))
        top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        mask = np.zeros((height, width), bool)
        mask[top : top + tall, left : left + wide] = True
        covered += int(2 * mask.sum() >= mask.size)
        truths.append([(left, top, left + wide, top + tall)])
        sizes.append((height, width))
        boxes.append(truths[-1][0])
    found = corloc(boxes, truths, sizes)
    assert found.whole_image == Score(covered, 200)
    assert 10 < covered < 190
    assert found.method == Score(200, 200)
    assert 0 < found.centre_box.hits < 200


def test_any_of_the_true_boxes_counts_and_images_without_one_are_skipped():
    """And are counted as skipped, not as misses."""
    truths = [[FULL, [50, 50, 60, 60]], [], [[50, 50, 60, 60]]]
    found = corloc([[50, 50, 60, 60], HALF, HALF], truths, [(100, 100)] * 3)
    assert found.method == Score(1, 2)
    assert found.skipped == 1
    assert found.to_dict() == {
        "corloc": 50.0, "whole_image": 0.0, "centre_box": 0.0, "hits": 1, "images": 2, "skipped": 1,
    }  # fmt: skip


def test_the_baselines_are_exact_boxes():
    """The whole image; the middle with sides of 7/10."""
    assert whole_box((30, 50)) == (0, 0, 50, 30)
    assert centre_box((30, 50)) == (Fraction(15, 2), Fraction(9, 2), Fraction(85, 2), Fraction(51, 2))
    assert iou(centre_box((30, 50)), whole_box((30, 50))) == Fraction(49, 100)
    assert not is_hit(centre_box((30, 50)), [whole_box((30, 50))])


def test_no_images_give_no_percentage():
    """Not zero."""
    none = corloc([], [], [])
    assert math.isnan(none.method.percent)
    assert none.to_dict()["corloc"] is None
    assert none == CorLoc(method=Score(0, 0), whole_image=Score(0, 0), centre_box=Score(0, 0))


@pytest.mark.parametrize("box", [[0, 0, 10], [10, 0, 0, 10], [0, 0, float("nan"), 1], [0, 0, float("inf"), 1]])
def test_what_is_no_box_is_refused(box):
    """Three numbers, wrong order, not finite."""
    with pytest.raises(ValueError, match="box"):
        iou(box, FULL)
