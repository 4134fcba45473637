"""Boxes against the procedure told try by try; pixels against Pillow's crop and resize."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinokit.train.data.crops import TRIES, CropRule, boxes, crop_numbers, crop_pixels, crop_tensors
from dinokit.train.data.recipe import GLOBAL_CROPS, LOCAL_CROPS

# Two roundings to 8 bits, at other places than Pillow's.
LEVELS, MORE = 1, 3e-3


def box_told_try_by_try(numbers: np.ndarray, height: int, width: int, rule: CropRule) -> list[int]:
    """As the field's random resized crop is described: up to ten tries, else the middle."""
    for a, r, y, x in numbers.tolist():
        area = height * width * (rule.scale[0] + (rule.scale[1] - rule.scale[0]) * a)
        low, high = (math.log(end) for end in rule.ratio)
        aspect = math.exp(low + (high - low) * r)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(y * (height - h + 1)), int(x * (width - w + 1)), h, w]
    if width / height < rule.ratio[0]:
        w, h = width, max(1, round(width / rule.ratio[0]))
    elif width / height > rule.ratio[1]:
        w, h = max(1, round(height * rule.ratio[1])), height
    else:
        w, h = width, height
    return [(height - h) // 2, (width - w) // 2, h, w]


@settings(max_examples=100, deadline=None)
@given(
    height=st.one_of(st.integers(1, 12), st.integers(1, 900)), width=st.one_of(st.integers(1, 12), st.integers(1, 900)),
    visit=st.integers(0, 1 << 40), low=st.floats(0.01, 1), more=st.floats(0, 1),
)  # fmt: skip
def test_boxes_are_those_of_the_procedure_and_lie_in_the_image(height, width, visit, low, more):
    """For images of any size and shape, also where no try fits."""
    rule = CropRule(4, 32, (low, low + (1 - low) * more))
    numbers = crop_numbers(3, np.array([visit]), 0, rule.count)[0]
    found = boxes(numbers, height, width, rule)
    assert found.tolist() == [box_told_try_by_try(x, height, width, rule) for x in numbers]
    top, left, h, w = found.T
    assert (found >= 0).all()
    assert (np.minimum(h, w) > 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_the_share_of_the_area_is_uniform():
    """Of square images, where a try is hardly ever refused; local crops are never above the global ones' least."""
    for rule in (GLOBAL_CROPS, LOCAL_CROPS):
        found = boxes(crop_numbers(0, np.arange(4000), 0, 1)[:, 0], 1000, 1000, CropRule(1, 8, rule.scale, (1.0, 1.0)))
        share = (found[:, 2] * found[:, 3] / 1e6 - rule.scale[0]) / (rule.scale[1] - rule.scale[0])
        counts = np.histogram(share, 10, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-square, 9 degrees of freedom, p = .001


def test_a_crop_depends_on_neither_its_company_nor_how_many_crops_there_are():
    """The numbers of crop 5 of visit 7 are the same alone."""
    together = crop_numbers(1, np.arange(20), 0, 10)
    assert together.shape == (20, 10, TRIES, 4)
    assert np.array_equal(crop_numbers(1, np.array([7]), 5, 1)[0, 0], together[7, 5])
    assert len(np.unique(together)) > 0.999 * together.size
    assert not np.array_equal(crop_numbers(2, np.arange(20), 0, 10), together)


def test_boxes_of_a_batch_are_those_of_each_image():
    """Sizes may differ by image."""
    numbers, rule = crop_numbers(1, np.arange(3), 0, 2), CropRule(2, 8, (0.1, 0.5))
    heights, widths = np.array([[40], [30], [7]]), np.array([[20], [50], [90]])
    together = boxes(numbers, heights, widths, rule)
    for i in range(3):
        assert np.array_equal(together[i], boxes(numbers[i], int(heights[i, 0]), int(widths[i, 0]), rule))


@pytest.mark.parametrize("size", [8, 33, 98])
def test_pixels_are_those_of_cropping_and_resizing_with_pillow(size):
    """Both ways, enlarging and shrinking, within one level of 255, hardly ever two; what is outside the box has no influence."""
    rng = np.random.default_rng(size)
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(image).resize((120, 90), box=(0, 0, 40, 30)))
    places = boxes(crop_numbers(0, np.array([size]), 0, 12)[0], 90, 120, CropRule(12, size, (0.02, 1.0)))
    alone = crop_pixels(image, places, size)
    batch = torch.from_numpy(image).permute(2, 0, 1).expand(12, 3, 90, 120)
    together = crop_tensors(batch, torch.from_numpy(places), size)
    for place, one, other in zip(places.tolist(), alone, together, strict=True):
        top, left, h, w = place
        part = Image.fromarray(image).crop((left, top, left + w, top + h))
        expected = np.array(part.resize((size, size), Image.Resampling.BICUBIC)).astype(int).transpose(2, 0, 1)
        for found in (one, other):
            away = np.abs(found.numpy() - expected)
            assert away.max() <= 2
            assert np.mean(away > LEVELS) < MORE
        assert abs(np.mean(other.numpy() - expected)) < 0.05  # no bias


def test_a_crop_of_the_right_size_is_not_resampled():
    """The box of a crop that is as large as asked for is cut out as it is."""
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    (one,) = crop_pixels(image, np.array([[1, 2, 5, 5]]), 5)
    assert np.array_equal(one.permute(1, 2, 0).numpy(), image[1:6, 2:7])
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert torch.equal(crop_tensors(batch, torch.tensor([[1, 2, 5, 5]]), 5)[0], one)


@pytest.mark.parametrize(
    "fields", [(-1, 8, (0.1, 1)), (1, 0, (0.1, 1)), (1, 8, (0.0, 1)), (1, 8, (0.5, 0.2)), (1, 8, (0.1, 1), (2, 1))]
)
def test_rules_without_meaning_are_refused(fields):
    """When they are made, not in a worker."""
    with pytest.raises(ValueError, match="must be"):
        CropRule(*fields)
