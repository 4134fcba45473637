"""Matching and label propagation: exact where the answer is known, and right on a real pair of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinokit.analysis.matching import (
    best_buddies,
    end_point_error,
    nearest,
    neighbours,
    patch_centres,
    pck,
    propagate_labels,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [(0, 1), (2, 0), (1, -3), (-2, 2)])
def test_m1_an_image_and_its_shift_match_exactly_off_the_border(shift):
    """Every patch that both show finds its twin, both ways: end-point error 0, PCK 1."""
    hw, (down, right) = (8, 10), shift
    scene = random(20, 20, 16)
    first = scene[5:13, 5:15].reshape(80, 16)
    second = scene[5 - down : 13 - down, 5 - right : 15 - right].reshape(80, 16)
    found = best_buddies(first, second)
    centres = patch_centres(hw, 14)
    expected = centres[found.first] + 14 * torch.tensor([down, right])
    shared = (expected > 0).all(dim=1) & (expected < torch.tensor([8.0, 10.0]) * 14).all(dim=1)
    assert int(shared.sum()) == (8 - abs(down)) * (10 - abs(right))
    assert end_point_error(centres[found.second], expected)[shared].max() == 0
    assert pck(centres[found.second][shared], expected[shared], (112, 140), alpha=0.001) == 1.0


@pytest.fixture(scope="module")
def motorcycle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right photograph in grey, disparity of the left one in pixels (inf: unknown)."""
    skimage = pytest.importorskip("skimage")
    folder = Path(skimage.__file__).parent / "data"
    left, right = (
        np.asarray(Image.open(folder / f"motorcycle_{side}.png").convert("RGB"), np.float32)
        for side in ("left", "right")
    )
    with np.load(folder / "motorcycle_disp.npz") as file:
        disparity = file["arr_0"]
    return left, right, disparity


def test_m1_the_left_photograph_at_x_shows_the_right_one_at_x_minus_the_disparity(motorcycle):
    """Mean absolute colour difference 8.2, against 15.6 for the convention that scikit-image documents."""
    left, right, disparity = motorcycle
    assert np.isfinite(disparity).mean() == pytest.approx(0.9265, abs=5e-4)
    rows, columns = np.nonzero(np.isfinite(disparity))
    shift = np.rint(disparity[rows, columns]).astype(int)
    errors = []
    for there, here, sign in ((right, left, -1), (left, right, 1)):
        target = columns + sign * shift
        inside = (target >= 0) & (target < left.shape[1])
        a, b = here[rows[inside], columns[inside]], there[rows[inside], target[inside]]
        errors.append(float(np.abs(a - b).mean()))
    assert errors[0] == pytest.approx(8.2, abs=0.15)
    assert errors[1] == pytest.approx(15.6, abs=0.15)


def test_m1_best_buddies_recover_the_disparity_of_a_real_pair(motorcycle):
    """Windows of pixels along the rows of both photographs: the median error is below 2 pixels with the right sign, and large with
    the other one.
    """
    left, right, disparity = motorcycle
    half, errors, wrong = 7, [], []

    def windows(image: np.ndarray, row: int, columns: np.ndarray) -> torch.Tensor:
        found = np.stack([image[row - half : row + half + 1, x - half : x + half + 1].ravel() for x in columns])
        return torch.from_numpy(found - found.mean(axis=1, keepdims=True))

    everywhere = np.arange(half, left.shape[1] - half)
    for row in range(60, 460, 40):
        found = best_buddies(windows(left, row, everywhere), windows(right, row, everywhere))
        a, b = everywhere[found.first.numpy()], everywhere[found.second.numpy()]
        known = np.isfinite(disparity[row, a])
        true, points = disparity[row, a[known]], torch.from_numpy(b[known]).float()[:, None]
        for sign, into in ((-1, errors), (1, wrong)):
            into.append(end_point_error(points, torch.from_numpy(a[known] + sign * true).float()[:, None]))
    right_way, wrong_way = torch.cat(errors), torch.cat(wrong)
    assert len(right_way) > 2000
    assert right_way.median() < 2
    assert wrong_way.median() > 20
    assert (right_way <= 5).float().mean() > 0.7


def test_masked_tokens_never_match():
    """Artefacts of two images look alike; left out, they leave the other pairs as they were."""
    first, second = random(30, 8), random(30, 8, seed=1)
    first[3] = second[9] = 100 * random(8, seed=2)
    assert (3, 9) in set(zip(*(part.tolist() for part in best_buddies(first, second)[:2]), strict=True))
    keep_a, keep_b = torch.arange(30) != 3, torch.arange(30) != 9
    found = best_buddies(first, second, mask_a=keep_a, mask_b=keep_b)
    assert 3 not in found.first
    assert 9 not in found.second
    alone = best_buddies(first[keep_a], second[keep_b])
    assert torch.equal(found.first, keep_a.nonzero()[:, 0][alone.first])
    assert torch.equal(found.second, keep_b.nonzero()[:, 0][alone.second])
    assert 9 not in nearest(first, second, mask_b=keep_b).second
    assert len(nearest(first, second, mask_a=keep_a).first) == 29


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 20), m=st.integers(1, 20))
def test_best_buddies_are_each_others_nearest_and_symmetric(seed, n, m):
    """By brute force, in both orders of the images."""
    a, b = random(n, 5, seed=seed), random(m, 5, seed=seed + 1)
    there, back = nearest(a, b).second, nearest(b, a).second
    expected = {(i, int(there[i])) for i in range(n) if int(back[there[i]]) == i}
    found, mirrored = best_buddies(a, b), best_buddies(b, a)
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == expected
    assert set(zip(mirrored.second.tolist(), mirrored.first.tolist(), strict=True)) == expected
    assert (found.similarity[1:] <= found.similarity[:-1]).all()


def test_pck_counts_its_boundary_and_the_longer_side():
    """Distance of exactly alpha times the longer side is correct."""
    true, predicted = torch.zeros(4, 2), torch.tensor([[0.0, 10.0], [10.5, 0.0], [0.0, 0.0], [6.0, 8.0]])
    assert pck(predicted, true, (50, 100), alpha=0.1) == 0.75
    assert pck(predicted, true, 100, alpha=0.2) == 1.0
    with pytest.raises(ValueError, match="needs points"):
        pck(true[:0], true[:0], 100)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("frames", [2, 12])
@pytest.mark.parametrize("radius", [2, None])
def test_m2_a_static_video_keeps_its_mask(temperature, frames, radius):
    """With one nearest token, at any temperature: identical in every frame."""
    tokens = random(1, 42, 12).expand(frames, -1, -1)
    mask = torch.nn.functional.one_hot(torch.arange(42) % 3, 3).float()
    found = propagate_labels(tokens, mask, (6, 7), top_k=1, temperature=temperature, radius=radius)
    assert torch.equal(found, mask.expand(frames, -1, -1))


@pytest.mark.parametrize("shape", ["square", "circle"])
def test_labels_follow_a_moving_scene(shape):
    """A scene that moves by one patch a frame takes its mask along, as far as the neighbourhood reaches."""
    scene = random(8, 30, 24)
    labels = (torch.arange(30) // 4 % 2).expand(8, -1)
    frames = torch.stack([scene[:, t : t + 12].reshape(96, 24) for t in range(6)])
    first = torch.nn.functional.one_hot(labels[:, :12].reshape(96), 2).float()
    found = propagate_labels(frames, first, (8, 12), context=2, radius=3, top_k=1, neighbourhood=shape).argmax(-1)
    for t in range(6):
        shown = labels[:, t : t + 12]
        assert torch.equal(found[t].view(8, 12)[:, : 12 - t], shown[:, : 12 - t])


def test_soft_labels_stay_shares():
    """Each token's classes sum to 1."""
    first = torch.softmax(random(20, 4), dim=-1)
    found = propagate_labels(random(5, 20, 6, seed=1), first, (4, 5), radius=1)
    assert found.shape == (5, 20, 4)
    assert (found.sum(dim=-1) - 1).abs().max() < 1e-6


def test_neighbourhoods_are_squares_and_circles():
    """DINO's window and DINOv3's disc."""
    middle = 3 * 7 + 3
    assert int(neighbours((7, 7), 2, "square")[middle].sum()) == 25
    assert int(neighbours((7, 7), 2, "circle")[middle].sum()) == 13
    assert torch.equal(neighbours((7, 7), 0), torch.eye(49, dtype=torch.bool))
    with pytest.raises(ValueError, match="square, circle"):
        neighbours((7, 7), 2, "hexagon")


def test_sizes_and_settings_that_do_not_fit_are_refused():
    """With the rule in the message."""
    with pytest.raises(ValueError, match="3 x 3"):
        propagate_labels(torch.zeros(2, 8, 4), torch.zeros(8, 2), (3, 3))
    with pytest.raises(ValueError, match="temperature above 0"):
        propagate_labels(torch.zeros(2, 9, 4), torch.zeros(9, 2), (3, 3), temperature=0)
    with pytest.raises(ValueError, match="expected"):
        best_buddies(torch.zeros(2, 3), torch.zeros(2, 4))
