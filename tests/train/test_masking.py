"""Block masks against the procedure told step by step and against recorded statistics; their place in a batch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dinokit.train.counter import Stream
from dinokit.train.masking import (
    BlockRule,
    Masks,
    MaskShare,
    block_masks,
    completed,
    crop_ids,
    draw_exact_masks,
    draw_masks,
    half_of,
    random_targets,
    shifted,
)

STREAM = Stream(0, "mask blocks")
DRAWS = 2000
IN_PLANE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))])


def mask_told_step_by_step(step: int, crop: int, target: int, grid: tuple[int, int], rule: BlockRule) -> np.ndarray:
    """The procedure as its description has it, one try after the other."""
    mask, count, tried = np.zeros(grid, bool), 0, 0
    while count < target:
        most = min(target - count, rule.max_patches)
        for _ in range(rule.tries):
            numbers = (STREAM.words(step, np.array([crop]), tried)[0, 0] + 0.5) / 2**32
            tried += 1
            area = rule.min_patches + (most - rule.min_patches) * numbers[0]
            low = math.log(rule.min_aspect)
            aspect = math.exp(low - 2 * low * numbers[1])
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= grid[0] or w >= grid[1]:
                continue
            top, left = int(numbers[2] * (grid[0] - h + 1)), int(numbers[3] * (grid[1] - w + 1))
            new = h * w - mask[top : top + h, left : left + w].sum()
            if 0 < new <= most:
                mask[top : top + h, left : left + w] = True
                count += new
                break
        else:
            break
    return mask


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 20), width=st.one_of(st.integers(1, 20), st.integers(60, 135)), seed=st.integers(0, 10**6),
    ahead=st.integers(1, 10), shares=st.lists(st.floats(0, 1), min_size=1, max_size=5), most=st.floats(1, 200),
)  # fmt: skip
def test_masks_are_those_of_the_procedure(height, width, seed, ahead, shares, most):
    """Bit for bit, for any grid (rows of more than 64 patches, too), however many tries are looked at together."""
    grid, rule = (height, width), BlockRule(most)
    targets = (np.array(shares) * height * width).astype(np.int64)
    crops = np.arange(len(targets)) + seed
    masks = block_masks(STREAM, seed, crops, targets, grid, rule, ahead)
    for crop, target, mask in zip(crops.tolist(), targets.tolist(), masks, strict=True):
        assert np.array_equal(mask, mask_told_step_by_step(seed, crop, target, grid, rule))
        assert mask.sum() <= target


def statistics_of(masks: np.ndarray, target: int) -> dict[str, np.ndarray]:
    """Per draw, the measures that were recorded."""
    counts = masks.sum(axis=(1, 2))
    labels, _ = ndimage.label(masks, structure=IN_PLANE)
    sizes = [np.unique(m[m > 0], return_counts=True)[1] for m in labels]
    border = np.ones(masks.shape[1:], bool)
    border[1:-1, 1:-1] = False
    pairs = (masks[:, 1:] & masks[:, :-1]).sum(axis=(1, 2)) + (masks[:, :, 1:] & masks[:, :, :-1]).sum(axis=(1, 2))
    return {
        "masked_ratio": masks.mean(axis=(1, 2)),
        "masked_over_target": counts / target,
        "fraction_of_draws_at_target": (counts == target).astype(float),
        "components_4": np.array([len(s) for s in sizes]),
        "largest_component_share": np.array([s.max() / s.sum() for s in sizes]),
        "adjacent_masked_pairs_per_masked": pairs / counts,
        "masked_ratio_on_border_cells": masks[:, border].mean(axis=1),
        "masked_ratio_on_inner_cells": masks[:, ~border].mean(axis=1),
    }


def within_four_standard_errors(ours: np.ndarray, theirs: dict[str, float] | float) -> bool:
    if isinstance(theirs, float):
        theirs = {"mean": theirs, "standard_error": math.sqrt(theirs * (1 - theirs) / DRAWS)}
    error = math.hypot(ours.std(ddof=1) / math.sqrt(len(ours)), theirs["standard_error"])
    return abs(ours.mean() - theirs["mean"]) <= 4 * error


@pytest.mark.parametrize("case", ["16x16", "10x14"])
def test_masks_have_the_references_statistics(ssl, recorded, case):
    """Eight measures and the map of frequencies over 2,000 draws at each of three targets."""
    table = json.loads((ssl / "mask_statistics.json").read_text())["block_masks"][case]
    maps = recorded("masks")
    for index, entry in enumerate(table["by_target"]):
        target = entry["target"]
        rule = BlockRule(table["max_num_patches"], table["min_num_patches"], table["min_aspect"])
        masks = block_masks(STREAM, index, np.arange(DRAWS), np.full(DRAWS, target), tuple(table["grid"]), rule)
        ours = statistics_of(masks, target)
        assert (ours["masked_over_target"] <= 1).all()
        assert set(ours) <= set(entry)
        for name, values in ours.items():
            assert within_four_standard_errors(values, entry[name]), name
        frequency = maps[f"blocks_{case}/frequency_at_{target}"].numpy()
        pooled = (masks.mean(axis=0) + frequency) / 2
        z = (masks.mean(axis=0) - frequency) / np.sqrt(2 * pooled * (1 - pooled) / DRAWS + 1e-12)
        assert np.abs(z).max() < 5
        assert np.sqrt((z**2).mean()) < 1.3


def test_batches_have_the_references_statistics(ssl):
    """Half of the crops, ratios in bins, each crop equally often: over 2,000 batches of four images."""
    table = json.loads((ssl / "mask_statistics.json").read_text())["collate"]
    share = MaskShare(table["mask_probability"], tuple(table["mask_ratio"]))
    rule = BlockRule(table["max_num_patches"])
    batches = np.stack([draw_masks(1, s, np.arange(4), tuple(table["grid"]), rule, share) for s in range(DRAWS)])
    ratios = batches.mean(axis=2)
    assert ((ratios > 0).sum(axis=1) == table["masked_crops"]).all()
    ordered = np.sort(ratios, axis=1)[:, -table["masked_crops"] :]
    assert (ordered * 256 <= (share.edges(8)[1:] * 256).astype(int)).all()
    assert (batches.sum(axis=(1, 2)) <= share.most(8, 256)).all()
    theirs = table["statistics"]
    assert within_four_standard_errors(ratios.mean(axis=1), theirs["masked_fraction_of_all_tokens"])
    by_rank = theirs["masked_ratio_by_sorted_rank"]
    for rank in range(table["masked_crops"]):
        entry = {"mean": by_rank["mean"][rank], "standard_error": by_rank["standard_error"][rank]}
        assert within_four_standard_errors(ordered[:, rank], entry)
    for crop, fraction in enumerate(theirs["fraction_of_draws_in_which_crop_is_masked"]):
        assert within_four_standard_errors((ratios[:, crop] > 0).astype(float), fraction)


def test_the_largest_number_of_masked_patches_is_the_references(ssl):
    """In double precision, for thirteen batches."""
    for row in json.loads((ssl / "mask_statistics.json").read_text())["upperbound_table"]:
        share = MaskShare(row["mask_probability"], tuple(row["mask_ratio"]))
        assert share.most(row["crops"], row["tokens_per_crop"]) == row["same_sum_in_double_precision"]
        assert len(share.edges(row["crops"])) - 1 == row["masked_crops"]


def test_indices_and_weights_follow_from_masks(recorded):
    """Of a batch that the reference collated, and of one without any mask."""
    data = recorded("masks")
    masks = Masks.of(data["collate/masks"].numpy())
    assert torch.equal(masks.indices, data["collate/mask_indices"])
    assert torch.equal(masks.weights, data["collate/masks_weight"].float())
    assert len(masks.indices) == data["collate/n_masked_patches"].item()
    nothing = Masks.of(np.zeros((4, 9), bool)).to("cpu")
    assert nothing.indices.shape == nothing.weights.shape == (0,)
    assert crop_ids(np.array([5, 9])).tolist() == [10, 18, 11, 19]


def test_the_quirk_of_the_largest_block_is_kept():
    """Formed left to right, as the reference does: less than half the grid where patches do not divide pixels."""
    assert [half_of(*sizes).max_patches for sizes in ((224, 16), (224, 14), (518, 14))] == [98, 128, 666]


@pytest.mark.parametrize("draw", [draw_masks, draw_exact_masks])
def test_two_processes_draw_the_masks_of_one(draw):
    """Each makes its own images' masks only; what it draws depends on seed and step."""
    samples, rule = np.array([11, 4, 7, 90, 3, 1]), BlockRule(40)
    whole = draw(3, 5, samples, (8, 10), rule).reshape(2, 6, -1)
    parts = [draw(3, 5, samples, (8, 10), rule, own=own).reshape(2, 3, -1) for own in (slice(0, 3), slice(3, 6))]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    assert np.array_equal(whole, draw(3, 5, samples, (8, 10), rule).reshape(2, 6, -1))
    for other in (draw(4, 5, samples, (8, 10), rule), draw(3, 6, samples, (8, 10), rule)):
        assert not np.array_equal(whole.reshape(12, -1), other)


def test_exact_masks_have_the_same_number_in_every_batch():
    """The upper bound itself; every mask as blocky as blocks allow, and wherever it was moved to."""
    samples, rule = np.arange(6), BlockRule(128)
    for step in range(30):
        for around in (False, True):
            masks = draw_exact_masks(0, step, samples, (16, 16), rule, around=around)
            assert masks.sum() == MaskShare().most(12, 256)
            assert sorted(masks.sum(axis=1))[6:] == (256 * MaskShare().edges(12)[1:]).astype(int).tolist()


def test_completing_adds_to_a_mask_and_shifting_moves_it():
    """Nothing is unmasked; shifts wrap around and reach the border as often as the middle."""
    crops, targets = np.arange(500), np.full(500, 60)
    masks = block_masks(STREAM, 0, crops, targets, (12, 12), BlockRule(72))
    full = completed(Stream(0, "rest"), 0, crops, masks, targets)
    assert (masks.sum(axis=(1, 2)) < 60).any()
    assert (full.sum(axis=(1, 2)) == 60).all()
    assert (full | ~masks).all()
    moved = shifted(Stream(0, "shift"), 0, crops, full)
    for before, after in zip(full[:5], moved[:5], strict=True):
        assert any(np.array_equal(np.roll(before, (i, j), (0, 1)), after) for i in range(12) for j in range(12))
    share = moved.mean(axis=0)
    assert np.abs(share - 60 / 144).max() < 5 * math.sqrt(0.25 / 500)
    assert full.mean(axis=0)[0].mean() < 0.5 * full.mean(axis=0)[5].mean()


def test_a_crop_keeps_its_ratio_whoever_else_is_masked():
    """Targets are drawn per crop within the bins; without any share nobody is masked."""
    crops = crop_ids(np.arange(8))
    targets = random_targets(Stream(0, "t"), 0, crops, 256, MaskShare(1.0, (0.1, 0.5)))
    assert (targets > 0).all()
    assert not random_targets(Stream(0, "t"), 0, crops, 256, MaskShare(0.05)).any()
