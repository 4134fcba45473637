"""Maps of patches to maps of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinokit.analysis import upsample
from dinokit.analysis.upsample import bilinear, joint_bilateral, nearest
from tests.tolerances import SAME_MATH, max_error

PHOTO = torch.rand(3, 28, 42, generator=torch.Generator().manual_seed(0))


def ways(values: torch.Tensor) -> list[torch.Tensor]:
    return [nearest(values, (28, 42)), bilinear(values, (28, 42)), joint_bilateral(values, PHOTO)]


@settings(max_examples=20, deadline=None)
@given(st.floats(-5, 5, width=32), st.integers(0, 1000))
def test_constants_stay_and_nothing_new_appears(value, seed):
    """A constant map stays constant; otherwise every pixel lies between the smallest and the largest patch."""
    for out in ways(torch.full((2, 4, 6), value)):
        assert (out - value).abs().max() <= 1e-5
    values = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(seed))
    for out in ways(values):
        assert out.shape == (1, 28, 42)
        assert out.min() >= values.min() - 1e-5
        assert out.max() <= values.max() + 1e-5


def test_nearest_repeats_each_patch():
    """Exactly, row by row."""
    values = torch.randn(3, 4, 6)
    assert torch.equal(nearest(values, (28, 42)), values.repeat_interleave(7, 1).repeat_interleave(7, 2))


def test_joint_bilateral_follows_the_edges_of_the_photograph():
    """A black and white photograph whose edge runs through patches: values do not cross it, where bilinear smears."""
    photo = torch.zeros(3, 40, 60)
    photo[:, :, 33:] = 1  # patches are 10 wide, so the edge lies within the fourth
    values = torch.zeros(1, 4, 6)
    values[:, :, 4:] = 1
    values[:, :, 3] = 0.7  # mostly white
    out = joint_bilateral(values, photo)[0]
    assert out[:, :28].max() < 0.05
    assert out[:, 36:].min() > 0.6
    smeared = bilinear(values, (40, 60))[0]
    assert (out[:, 35] - out[:, 32]).min() > 3 * (smeared[:, 35] - smeared[:, 32]).max()


def test_joint_bilateral_equals_its_formula():
    """Equation 3 of the paper by loops, at every pixel of a small picture whose sides no patch divides evenly."""
    rng = np.random.default_rng(0)
    values, photo = rng.random((2, 3, 4)).astype(np.float32), rng.random((3, 10, 13)).astype(np.float32)
    sigma, tint = 0.8, 0.2
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(photo)[None], (3, 4))[0].numpy()
    expected = np.zeros((2, 10, 13))
    for y in range(10):
        for x in range(13):
            row, column = (y + 0.5) * 3 / 10 - 0.5, (x + 0.5) * 4 / 13 - 0.5
            total = 0.0
            for i in range(3):
                for j in range(4):
                    if max(abs(i - round(row)), abs(j - round(column))) <= upsample.RADIUS:
                        near = np.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
                        like = np.exp(-((photo[:, y, x] - small[:, i, j]) ** 2).sum() / (2 * tint**2))
                        expected[:, y, x] += near * like * values[:, i, j]
                        total += near * like
            expected[:, y, x] /= total
    found = joint_bilateral(torch.from_numpy(values), torch.from_numpy(photo), spatial_sigma=sigma, colour_sigma=tint)
    assert max_error(found, torch.from_numpy(expected).float()) <= 5 * SAME_MATH


def test_misuse_is_said():
    """Fewer pixels than patches, NaN, sigmas of nothing."""
    values = torch.zeros(1, 4, 6)
    with pytest.raises(ValueError, match="fewer"):
        bilinear(values, (3, 6))
    with pytest.raises(ValueError, match="not finite"):
        joint_bilateral(values * torch.nan, PHOTO)
    with pytest.raises(ValueError, match="colour_sigma 0"):
        joint_bilateral(values, PHOTO, colour_sigma=0)
