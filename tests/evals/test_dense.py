"""Evaluations on pixels, on tokens that hold the answer: found where it is, not found where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dinokit
from dinokit.errors import ImageError
from dinokit.evals.datasets import DatasetError, read_davis, read_pairs
from dinokit.evals.dense import depth_result, in_context_result, matching_result, segmentation_result, video_result
from dinokit.evals.depth import DepthRange, depth_of_scores, judge_depth, scale_invariant_loss
from dinokit.evals.features import DenseTokens, extract_features, whole_patches
from dinokit.evals.masks import judge_video
from dinokit.evals.matching import judge_points, read_keypoint_pairs, transfer_points
from dinokit.evals.segmentation import PatchHead, build_bank, in_context, judge_segmentation, patch_labels, resize_mask
from dinokit.evals.video import frame_size, propagate_masks
from dinokit.model import intermediate_tokens
from tests.evals.made import (
    davis_folder,
    depth_folders,
    mask_folders,
    plain,
    planted_checkpoint,
    random_codes,
    spair_folder,
    write_image,
)
from tests.tolerances import SAME_MATH, max_error

QUARTERS = {"num_classes": 4, "size": 16}
BATCHED = 1e-5  # tokens of 8 wide directions in batches of other sizes


@pytest.fixture(scope="module")
def pre(tmp_path_factory):
    return dinokit.load(planted_checkpoint(tmp_path_factory.mktemp("model") / "planted"))


@pytest.fixture
def quarters(tmp_path):
    """Class of a patch: its code modulo 4."""
    return [read_pairs(mask_folders(tmp_path, lambda code: code % 4, plain), split) for split in ("train", "val")]


def test_linear_segmentation_finds_classes_that_tokens_hold(pre, quarters):
    """mIoU 1 on masks as large as the grid; the settings and the network's identity stand in the result."""
    result = segmentation_result(pre, *quarters, steps=150, batch_size=4, label_size=4, **QUARTERS)
    assert result.metrics["mIoU"] == 1.0
    assert result.metrics["pixel accuracy"] == 1.0
    assert result.settings["label_size"] == 4
    assert len(result.details["iou"]) == 4
    assert result.model["pooling"] == "patches"
    assert len(result.model["weights_sha256"]) == 64
    assert result.published == ()
    again = segmentation_result(pre, *quarters, steps=150, batch_size=4, label_size=4, cache_bytes=0, **QUARTERS)
    assert again.metrics == result.metrics  # kept in memory or computed again


def test_linear_segmentation_does_not_find_what_tokens_do_not_hold(pre, tmp_path):
    """Classes drawn at random for each patch: IoU of chance, about 1/4 / (2 - 1/4) = 0.14."""
    rng = np.random.default_rng(0)
    mask_folders(tmp_path, lambda _: int(rng.integers(4)), plain, num=(24, 12))
    sets = [read_pairs(tmp_path, split) for split in ("train", "val")]
    found = segmentation_result(pre, *sets, steps=150, batch_size=4, label_size=4, **QUARTERS).metrics["mIoU"]
    assert found < 0.3


def test_in_context_segmentation_needs_no_training(pre, quarters):
    """The nearest patches have the same code, so they have the class; the number of classes is counted in the masks."""
    result = in_context_result(pre, *quarters, size=16, k=5)
    assert result.metrics["mIoU"] == 1.0
    assert result.settings["num_classes"] == 4
    assert result.settings["bank"] == 12 * 16
    small = in_context_result(pre, *quarters, size=16, k=5, bank_size=36)
    assert small.settings["bank"] == 36


def test_in_context_labels_are_the_weighted_mean_of_the_nearest():
    """Against a loop in float64."""
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(9, 5, generator=generator), F.normalize(torch.randn(30, 5, generator=generator), dim=1)
    labels = torch.rand(30, 3, generator=generator)
    found = in_context(queries, bank, labels, k=4, temperature=0.1)
    for query, row in zip(queries.double(), found, strict=True):
        cosines = bank.double() @ query / query.norm()
        best = cosines.argsort(descending=True)[:4]
        weights = (cosines[best] / 0.1).exp()
        assert max_error((weights[:, None] * labels[best]).sum(0) / weights.sum(), row) < 1e-5
    with pytest.raises(ValueError, match="k is 0"):
        in_context(queries, bank, labels, k=0)


def test_patch_labels_are_shares_of_labelled_pixels():
    """Ignored pixels don't count; a patch without others has a row of zeros, and no place in the bank."""
    mask = torch.full((4, 8), 255)
    mask[:2, :4], mask[2, :4] = 1, 0
    found = patch_labels(mask, (1, 2), 4, 2)
    assert max_error(found, torch.tensor([[1 / 3, 2 / 3], [0, 0]])) < SAME_MATH
    bank, labels = build_bank(lambda _: torch.eye(2)[None], lambda _: mask, 1, (1, 2), 4, 2)
    assert torch.equal(bank, torch.eye(2)[:1])
    assert len(labels) == 1
    with pytest.raises(ValueError, match="2 classes count from 0"):
        patch_labels(torch.full((4, 4), 3), (1, 1), 4, 2)
    with pytest.raises(ValueError, match="no patch of the train images"):
        build_bank(lambda _: torch.eye(2)[None], lambda _: torch.full((4, 8), 255), 1, (1, 2), 4, 2)


def test_masks_are_resized_to_the_nearest_pixel():
    """As Pillow does, so that no class appears in between."""
    from PIL import Image

    mask = np.random.default_rng(0).integers(0, 9, (7, 11)).astype(np.uint8)
    for size in ((3, 5), (14, 22), (7, 11), (20, 9)):
        expected = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
        assert np.array_equal(resize_mask(torch.from_numpy(mask), size).numpy(), expected)


def test_segmentation_is_judged_at_the_masks_own_size():
    """Scores of a 1 x 2 grid against a 2 x 4 mask: halves are right, whatever the size."""
    scores = torch.tensor([[[3.0, 0.0]], [[0.0, 3.0]]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255]])
    assert judge_segmentation(lambda _: scores, lambda _: mask, 1, 2).mean_iou == 1.0
    assert judge_segmentation(lambda _: scores, lambda _: 1 - mask.clamp(max=1), 1, 2).mean_iou == 0.0


@pytest.mark.parametrize("blocks", [1, 4])
def test_linear_depth_finds_depths_that_tokens_hold(pre, tmp_path, blocks):
    """RMSE below a third of the depths' deviation, from one block and from four; unknown pixels take no part."""
    depth_folders(tmp_path)
    sets = [read_pairs(tmp_path, split, ("images", "depth")) for split in ("train", "val")]
    result = depth_result(pre, *sets, size=16, blocks=blocks, steps=200, batch_size=8, rate=0.02)
    assert result.metrics["rmse"] < 0.3 * np.std([1.5, 3, 4])
    assert result.metrics["delta1"] == 1.0
    assert result.settings["blocks"] == ([3] if blocks == 1 else [0, 1, 2, 3])
    with pytest.raises(ValueError, match="1 or 4"):
        depth_result(pre, *sets, blocks=2)


def test_depth_is_the_mean_of_the_bins():
    """A patch whose score of one bin is large has that bin's depth; scores below 0 leave the middle."""
    reach = DepthRange(1.0, 3.0)
    scores = torch.full((1, 5, 2, 2), -1.0)
    assert max_error(depth_of_scores(scores, reach), torch.full((1, 8, 8), 2.0)) < SAME_MATH
    scores[:, 4] = 1e6
    assert max_error(depth_of_scores(scores, reach), torch.full((1, 8, 8), 3.0)) < 1e-5
    with pytest.raises(ValueError, match="nearest must be above 0"):
        DepthRange(3.0, 1.0)


def test_the_depth_loss_weighs_scale_less_than_shape():
    """For a constant factor f it is sqrt(0.15) |log f|; only valid pixels count."""
    true = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)) + 1
    valid = true > 1.2
    found = scale_invariant_loss(torch.where(valid, 2 * true, 77.0), true, valid)
    assert found.item() == pytest.approx(math.sqrt(0.15) * math.log(2), rel=1e-4)
    assert scale_invariant_loss(true, true, torch.zeros_like(valid)).item() == 0.0


def test_the_eigen_crop_judges_the_published_part():
    """Errors outside of rows 45 to 470 and columns 41 to 600 don't count; other sizes are refused."""
    true = torch.full((480, 640), 2.0)
    found = true.clone()
    found[:45], found[:, :41], found[471:], found[:, 601:] = 9.0, 9.0, 9.0, 9.0
    assert judge_depth(lambda _: found, lambda _: true, 1, eigen_crop=True).errors.rmse == 0.0
    assert judge_depth(lambda _: found, lambda _: true, 1).errors.rmse > 1
    with pytest.raises(ValueError, match="480 x 640"):
        judge_depth(lambda _: found, lambda _: true[:9], 1, eigen_crop=True)
    with pytest.raises(ValueError, match="none of 1 images"):
        judge_depth(lambda _: found, lambda _: 0 * true, 1)


def test_a_moving_square_is_followed():
    """Tokens of a square that crosses a grid of 12 x 12 patches; J and F near 1 (corners are rounded), 0 for shuffled tokens."""
    patch, side, num = 4, 12, 6
    tokens, masks = torch.zeros(num, side, side, 8), np.zeros((num, side * patch, side * patch), np.int64)
    tokens[..., 1:] = torch.randn(side, side, 7, generator=torch.Generator().manual_seed(0))
    for t in range(num):
        tokens[t, 2 + t : 6 + t, 3:7] = 5 * torch.eye(8)[0]
        masks[t, (2 + t) * patch : (6 + t) * patch, 3 * patch : 7 * patch] = 1
    frames = tokens.view(num, -1, 8)
    found = propagate_masks(frames, torch.from_numpy(masks[0]), (side, side), patch)
    assert np.array_equal(found[0], masks[0])
    score = judge_video(found, masks, 1)
    assert score.region[0] > 0.95
    assert score.contour[0] > 0.95
    mixed = frames[:, torch.randperm(side * side, generator=torch.Generator().manual_seed(1))]
    mixed[0] = frames[0]
    assert (
        judge_video(propagate_masks(mixed, torch.from_numpy(masks[0]), (side, side), patch), masks, 1).region[0] < 0.5
    )


def test_a_small_object_is_not_lost_to_the_background():
    """It covers a quarter of its patch: by shares it is gone; with each map brought to 0..1, DINO's way, it stays."""
    tokens = torch.eye(9).expand(3, -1, -1).contiguous()
    first = torch.zeros(12, 12, dtype=torch.long)
    first[4:6, 4:6] = 1  # a quarter of the middle patch
    found = propagate_masks(tokens, first, (3, 3), 4, top_k=1)
    assert found[1, 5, 5] == 1
    assert found[1, 0, 0] == 0


def test_frames_keep_their_shape_in_whole_patches():
    """480 x 854 at patches of 14 is 476 x 854; the shorter side is what is asked for, to a patch."""
    assert frame_size(480, 854, 14) == (476, 854)
    assert frame_size(854, 480, 14, 240) == (420, 238)
    assert whole_patches(3, 14) == 14


def test_videos_are_judged_through_a_network(pre, tmp_path):
    """The planted square is followed from its tokens; scores of each video stand in the details."""
    result = video_result(pre, read_davis(davis_folder(tmp_path)), short_side=16, radius=None)
    assert result.metrics["J"] > 0.85
    assert result.metrics["J&F"] == pytest.approx((result.metrics["J"] + result.metrics["F"]) / 2)
    assert list(result.details) == ["square"]
    with pytest.raises(DatasetError, match="no video"):
        video_result(pre, [])


def test_points_are_found_in_a_mirrored_image(pre, tmp_path):
    """Every patch differs, so each point is found at the centre of its patch: PCK 1 at the smallest alpha."""
    result = matching_result(pre, read_keypoint_pairs(spair_folder(tmp_path)), size=16, alphas=(0.001, 0.1))
    assert result.metrics == {"PCK@0.001": 1, "PCK@0.1": 1, "PCK@0.001, of all points": 1, "PCK@0.1, of all points": 1}
    with pytest.raises(DatasetError, match="no pair"):
        matching_result(pre, [])


def test_points_are_carried_between_images_of_different_sizes(tmp_path):
    """From (row, column) in 20 x 40 pixels to centres in 8 x 12, whatever the grids."""
    tokens = torch.eye(6)
    found = transfer_points(
        tokens, tokens.flip(0), torch.tensor([[0.0, 0.0], [19.0, 39.0]]), ((2, 3), (3, 2)), ((20, 40), (9, 12))
    )
    assert torch.equal(found, torch.tensor([[7.5, 9.0], [1.5, 3.0]]))
    (pair,) = read_keypoint_pairs(spair_folder(tmp_path))
    assert torch.equal(pair.source_points, torch.tensor([[2.0, 2.0], [10.0, 6.0]]))
    off = judge_points([pair.target_points + torch.tensor([[0.0, 1.7], [0.0, 0.0]])], [pair])
    assert off.per_pair == {0.01: 0.5, 0.05: 0.5, 0.1: 0.5}
    assert judge_points([pair.target_points + 1.1], [pair], (0.1,)).per_point == {0.1: 1.0}


def test_dense_tokens_are_those_of_the_network(pre, tmp_path):
    """In the order asked for, with the class token beside each patch where wanted; from memory the second time."""
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i in range(3):
        write_image(tmp_path / f"{i}.png", random_codes(i), outliers=(i,))
    tokens = DenseTokens(pre, paths, 17, blocks=(0, 3), with_cls=True, norm=False, batch_size=2)
    assert (tokens.size, tokens.grid, tokens.width, len(tokens)) == (16, (4, 4), 4 * 64, 3)
    with torch.no_grad():
        levels = intermediate_tokens(pre.model, pre.pixels(paths), (0, 3), norm=False)
    expected = torch.cat(
        [torch.cat([level.patches, level.cls[:, None].expand_as(level.patches)], dim=-1) for level in levels], dim=-1
    )
    for _ in range(2):
        assert max_error(tokens([2, 0]), expected[[2, 0]]) < BATCHED
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(ImageError):
        DenseTokens(pre, paths, 16)([0, 1])


def test_vectors_are_those_of_the_network_and_what_is_broken_is_named(pre, tmp_path):
    """Class tokens of the last blocks, oldest first, then the mean patch; on the disk as in memory."""
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i in range(5):
        write_image(tmp_path / f"{i}.png", random_codes(i), outliers=(i,))
    (tmp_path / "2.png").write_bytes(b"broken")
    found = extract_features(pre, paths, blocks=2, mean=True, batch_size=2)
    assert found.kept == (0, 1, 3, 4)
    assert [(path, error[:9]) for path, error in found.failed] == [(paths[2], "not_image")]
    with torch.no_grad():
        old, last = intermediate_tokens(pre.model, pre.pixels([paths[i] for i in found.kept]), 2)
    expected = torch.cat([old.cls, last.cls, last.patches.mean(dim=1)], dim=1)
    assert max_error(torch.from_numpy(found.vectors), expected) < BATCHED
    assert found.columns["1 block, cls+mean"] == slice(64, 192)
    stored = extract_features(pre, paths, blocks=2, mean=True, batch_size=2, storage=tmp_path / "x.npy")
    assert np.array_equal(stored.vectors, found.vectors)
    assert np.array_equal(np.load(tmp_path / "x.npy", mmap_mode="r")[:4], found.vectors)


def test_a_head_is_a_convolution_of_one_pixel():
    """The map of a head on tokens is that of batch norm and a 1 x 1 convolution on the map of tokens."""
    torch.manual_seed(0)
    head = PatchHead(6, 3)
    tokens = torch.randn(2, 20, 6)
    found = head(tokens, (4, 5))
    maps = tokens.transpose(1, 2).unflatten(2, (4, 5))
    normed = F.batch_norm(maps, None, None, head.norm.weight, head.norm.bias, training=True)
    expected = F.conv2d(normed, head.linear.weight[:, :, None, None], head.linear.bias)
    assert max_error(found, expected) < SAME_MATH
