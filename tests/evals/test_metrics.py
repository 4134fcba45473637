"""Each metric equals its definition, written here a second time in plain loops, or a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, jaccard_score

from dinokit.evals.masks import contour, contour_accuracy, dilate, judge_video, region_similarity
from dinokit.evals.metrics import (
    Segmentation,
    align_depth,
    confusion,
    depth_errors,
    judge_ranking,
    rankme,
    topk_accuracy,
)

CLOSE = 1e-9


def test_topk_accuracy_counts_labels_among_the_best():
    """By hand: ranks 1, 2, 3 of three rows; a k beyond the classes is left out."""
    scores = torch.tensor([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert topk_accuracy(scores, torch.tensor([0, 1, 2]), (1, 2, 3, 5)) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1})
    with pytest.raises(ValueError, match="0 rows"):
        topk_accuracy(scores[:0], torch.zeros(0, dtype=torch.long))


def oxford_ap(relevant: list[bool], junk: list[bool]) -> float:
    """The benchmark's definition: area under the precision-recall curve by trapezoids, junk skipped."""
    old_recall, old_precision, area, hits, seen = 0.0, 1.0, 0.0, 0, 0
    total = sum(r and not j for r, j in zip(relevant, junk, strict=True))
    for r, j in zip(relevant, junk, strict=True):
        if j:
            continue
        seen += 1
        hits += r
        recall, precision = hits / total, hits / seen
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_its_definition(places):
    """The trapezoid rule against a loop; the mean rule against scikit-learn; NaN where nothing is to be found."""
    relevant, junk = (torch.tensor([list(column)]) for column in zip(*places, strict=True))
    found = judge_ranking(relevant, junk, rule="trapezoid", ks=(3,))
    mean = judge_ranking(relevant, junk).average_precision[0].item()
    kept = relevant[0][~junk[0]].numpy()
    if not kept.any():
        assert math.isnan(found.average_precision[0])
        assert math.isnan(mean)
        return
    assert found.average_precision[0].item() == pytest.approx(oxford_ap(*relevant.tolist(), *junk.tolist()), abs=CLOSE)
    assert mean == pytest.approx(average_precision_score(kept, -np.arange(len(kept))), abs=CLOSE)
    reach = min(3, int(np.flatnonzero(kept).max()) + 1)
    assert found.precision_at[3][0].item() == pytest.approx(kept[:reach].mean())


def test_queries_without_anything_to_find_do_not_count():
    """The mean is over the others."""
    found = judge_ranking(torch.tensor([[True, False], [False, False]]))
    assert found.mean_average_precision == 1.0
    with pytest.raises(ValueError, match="rule is"):
        judge_ranking(torch.ones(1, 1, dtype=torch.bool), rule="other")


@given(st.integers(0, 2**31), st.integers(2, 5))
def test_segmentation_scores_are_those_of_scikit_learn(seed, num_classes):
    """Confusion, IoU of each class, pixel accuracy; ignored pixels take no part."""
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, num_classes, (2, 40))
    ignored = rng.random(40) < 0.2
    ignored[0] = False
    labels = torch.from_numpy(np.where(ignored, 255, true))
    matrix = confusion(torch.from_numpy(predicted), labels, num_classes)
    t, p = true[~ignored], predicted[~ignored]
    assert np.array_equal(matrix.numpy(), confusion_matrix(t, p, labels=range(num_classes)))
    score = Segmentation.of(matrix)
    present = sorted(set(t) | set(p))
    expected = jaccard_score(t, p, labels=present, average=None, zero_division=0)
    assert score.iou[present].numpy() == pytest.approx(expected, abs=CLOSE)
    assert torch.isnan(score.iou).sum() == num_classes - len(present)
    assert score.mean_iou == pytest.approx(expected.mean(), abs=CLOSE)
    assert score.pixel_accuracy == pytest.approx((t == p).mean(), abs=CLOSE)


def test_labels_outside_of_the_classes_are_refused():
    """As a count of them would be a number about something else."""
    with pytest.raises(ValueError, match="3 classes count from 0"):
        confusion(torch.tensor([0]), torch.tensor([3]), 3)


def test_depth_errors_of_a_constant_factor_have_a_closed_form():
    """All depths 1.3 times too far: abs-rel 0.3, no delta1, all delta2; unknown pixels (0) take no part."""
    true = torch.tensor([[1.0, 2.0, 0.0], [4.0, 5.0, 0.0]])
    found = depth_errors(1.3 * true + (true == 0) * 77, true)
    assert found.abs_rel == pytest.approx(0.3)
    assert found.rmse == pytest.approx(0.3 * math.sqrt((1 + 4 + 16 + 25) / 4), rel=1e-6)
    assert found.rmse_log == pytest.approx(math.log(1.3))
    assert (found.delta1, found.delta2, found.delta3) == (0.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="0 valid pixels"):
        depth_errors(true, torch.zeros_like(true))


def test_aligned_depth_is_the_least_squares_line():
    """As NumPy fits it; a map that is only scaled and shifted becomes exact; a constant becomes the mean."""
    generator = torch.Generator().manual_seed(0)
    predicted, true = torch.rand(2, 6, 7, generator=generator, dtype=torch.float64) + 1
    slope, shift = np.polyfit(predicted.flatten().numpy(), true.flatten().numpy(), 1)
    assert align_depth(predicted, true).numpy() == pytest.approx((slope * predicted + shift).numpy(), abs=CLOSE)
    assert align_depth(-3 * true + 5, true).numpy() == pytest.approx(true.numpy(), abs=CLOSE)
    assert align_depth(torch.ones_like(true), true).numpy() == pytest.approx(true.mean().item())


def test_rankme_counts_equal_directions():
    """An orthonormal basis of r directions has rank r; one direction has 1."""
    for r in (1, 3, 8):
        assert rankme(torch.eye(10, 8)[:, :r] * 5) == pytest.approx(r, rel=1e-5)
    assert rankme(torch.ones(9, 4)) == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match="no rank"):
        rankme(torch.zeros(3, 3))


def brute_dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        for i in range(mask.shape[0]):
            for j in range(mask.shape[1]):
                out[i, j] |= (i - y) ** 2 + (j - x) ** 2 <= radius**2
    return out


@given(st.integers(0, 2**31), st.integers(0, 5))
def test_dilation_takes_all_pixels_within_the_radius(seed, radius):
    """Against four nested loops."""
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 9), rng.integers(1, 9))) < 0.15
    assert np.array_equal(dilate(mask, radius), brute_dilate(mask, radius))


def square(top: int, left: int, side: int = 20, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_and_contour_of_a_shifted_square():
    """J is the overlap in closed form; F forgives a shift within its reach (2 pixels here) and no more of the far sides."""
    true = square(40, 40)
    assert region_similarity(true, true) == contour_accuracy(true, true) == 1.0
    assert region_similarity(square(40, 50), true) == pytest.approx(10 * 20 / (2 * 400 - 200))
    assert contour_accuracy(square(42, 40), true) == 1.0
    assert contour_accuracy(square(5, 5), true) == 0.0
    nothing = np.zeros_like(true)
    assert region_similarity(nothing, nothing) == contour_accuracy(nothing, nothing) == 1.0
    assert region_similarity(nothing, true) == contour_accuracy(nothing, true) == 0.0
    assert contour(true).sum() == 4 * 20  # left and above of the square, and its last column and row


def test_contour_accuracy_is_its_definition():
    """Precision and recall of contour pixels near the other contour, by brute force."""
    true, ours = square(8, 8, 12, 40), square(9, 13, 10, 40)
    reach = math.ceil(0.008 * math.hypot(40, 40))
    precision = (contour(ours) & brute_dilate(contour(true), reach)).sum() / contour(ours).sum()
    recall = (contour(true) & brute_dilate(contour(ours), reach)).sum() / contour(true).sum()
    assert contour_accuracy(ours, true) == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_video_is_judged_without_its_first_and_last_frame():
    """Whatever stands there; void pixels don't count; objects one by one."""
    true = np.stack([square(40, 40).astype(int)] * 4)
    predicted = true.copy()
    predicted[[0, 3]] = 0
    score = judge_video(predicted, true, 2)
    assert score.region == (1.0, 1.0)  # of object 2 there is nothing to find and nothing was found
    predicted[1, 0, 0] = 1
    assert judge_video(predicted, true, 1).region[0] < 1
    true[1, 0, 0] = 255
    assert judge_video(predicted, true, 1).region[0] == 1
    with pytest.raises(ValueError, match="three"):
        judge_video(true[:2], true[:2], 1)
