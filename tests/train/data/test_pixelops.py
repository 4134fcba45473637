"""Each change against Pillow, colorsys, or the sum written out."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from dinokit.train.data.pixelops import blended, blurred, hue_shifted, luma, solarized

CLOSE = 2e-6  # float32, values in [0, 1]
LEVEL = 1 / 255

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None]


WEIGHTS = {
    "Brightness": lambda f: (f, 0.0, 0.0),
    "Contrast": lambda f: (f, 0.0, 1 - f),
    "Color": lambda f: (f, 1 - f, 0.0),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.83, 1.0, 1.25, 1.4])
def test_brightness_contrast_and_saturation_are_pillows(name, factor):
    """Within the levels that Pillow cuts off: the mean grey as a whole number, the result, the grey before."""
    expected = tensor(getattr(ImageEnhance, name)(Image.fromarray(IMAGE)).enhance(factor))
    found = blended(tensor(IMAGE), torch.tensor([WEIGHTS[name](factor)]))
    assert (found - expected).abs().max() <= 1.6 * LEVEL
    assert (found - expected).mean().abs() <= 0.7 * LEVEL


def test_grey_is_pillows():
    """To half a level, in all three colours."""
    expected = np.asarray(Image.fromarray(IMAGE).convert("L")).astype(np.float32) / 255
    found = blended(tensor(IMAGE), torch.tensor([[0.0, 1.0, 0.0]]))
    assert (found[0] - torch.from_numpy(expected)).abs().max() <= 0.51 * LEVEL
    assert torch.equal(found[0, 0], found[0, 1])


def test_images_of_a_batch_are_mixed_each_by_its_own_weights():
    """Against the formula in NumPy, with clipping."""
    rng = np.random.default_rng(1)
    x, weights = rng.random((5, 3, 7, 6)), rng.uniform(-1, 2, (5, 3))
    grey = np.tensordot([0.299, 0.587, 0.114], x, (0, 1))[:, None]
    own, level, mean = (weights[:, i, None, None, None] for i in range(3))
    expected = np.clip(own * x + level * grey + mean * grey.mean(axis=(2, 3), keepdims=True), 0, 1)
    found = blended(torch.from_numpy(x).float(), torch.from_numpy(weights).float())
    assert np.abs(found.numpy() - expected).max() < CLOSE
    assert np.abs(luma(torch.from_numpy(x)).numpy() - grey).max() < CLOSE


SPECIAL = [
    (0, 0, 0),
    (1, 1, 1),
    (0.5, 0.5, 0.5),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (0, 1, 1),
    (1, 0, 1),
    (0.2, 0.7, 0.7),
]


@settings(max_examples=60, deadline=None)
@given(
    colours=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=8),
    turns=st.lists(st.floats(-0.5, 0.5, width=32), min_size=2, max_size=2),
)
def test_hue_is_that_of_colorsys(colours, turns):
    """For any colour and turn; grey stays as it is."""
    values = np.array([*SPECIAL, *(np.array(colours) / 255)], np.float32)
    x = torch.from_numpy(values.T.copy())[None, :, None].expand(2, 3, 1, len(values))
    found = hue_shifted(x, torch.tensor(turns))
    for i, turn in enumerate(turns):
        for j, colour in enumerate(values.tolist()):
            h, s, v = colorsys.rgb_to_hsv(*colour)
            expected = colorsys.hsv_to_rgb((h + turn) % 1.0, s, v)
            assert np.abs(found[i, :, 0, j].numpy() - expected).max() < 4 * CLOSE


def blur_written_out(image: np.ndarray, sigma: float, size: int) -> np.ndarray:
    """The two-dimensional sum, pixel by pixel, over an image mirrored at its borders."""
    reach = size // 2
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2
    out = np.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            out[:, y, x] = (padded[:, y : y + size, x : x + size] * kernel).sum(axis=(1, 2))
    return out


@pytest.mark.parametrize("shape", [(12, 9), (5, 20), (3, 2), (1, 6)])
def test_blur_is_the_sum_written_out(shape):
    """Each image with its own width; images narrower than the kernel too."""
    images = np.random.default_rng(2).random((3, 3, *shape))
    sigmas = np.array([0.1, 0.7, 2.0])
    found = blurred(torch.from_numpy(images).float(), torch.from_numpy(sigmas).float())
    for image, sigma, one in zip(images, sigmas, found, strict=True):
        assert np.abs(one.numpy() - blur_written_out(image, sigma, 9)).max() < CLOSE


def test_solarisation_is_pillows():
    """On every level, exactly."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([levels] * 3, axis=-1)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), 128))
    found = solarized(tensor(image))[0].permute(1, 2, 0) * 255
    assert np.array_equal(found.round().numpy(), expected)
