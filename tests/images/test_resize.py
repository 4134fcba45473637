"""`resize_crop`: equal to Pillow's resize and a crop, whichever way the result is computed, and small in memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinokit.images import resize, resize_crop
from dinokit.images.resize import RESAMPLES, Resample
from tests.images.corpus import noise

LENGTHS = st.one_of(st.integers(1, 70), st.sampled_from([1, 2, 16, 48, 64, 96, 128]))
TARGETS = st.one_of(st.integers(1, 130), st.sampled_from([1, 16, 32, 64, 128]))


def by_pillow(image: Image.Image, size: tuple[int, int], crop: tuple[int, int, int, int], name: str) -> np.ndarray:
    whole = np.asarray(image.resize(size[::-1], Image.Resampling[name.upper()]))
    top, left, height, width = crop
    return whole[top : top + height, left : left + width]


@pytest.fixture(params=["as shipped", "always the shortest way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With limits of 0 no full resize is small enough, so that boxes and integer arithmetic do all the work."""
    if request.param != "as shipped":
        monkeypatch.setattr(resize, "FULL_TIMES_CROP", 0)
        monkeypatch.setattr(resize, "FULL_PIXELS", 0)
        monkeypatch.setattr(resize, "CHUNK_PIXELS", 500)
    return str(request.param)


@pytest.mark.parametrize("name", RESAMPLES)
@pytest.mark.parametrize("seed", range(40))
def test_random_crops_equal_pillow(name: Resample, seed: int, way: str) -> None:
    """Any size to any size, any crop, any filter, noise or black and white: no pixel differs."""
    chance = np.random.default_rng(seed)
    for _ in range(4):
        height, width = chance.integers(1, 80, 2)
        out = tuple(
            int(size) for size in (chance.integers(1, 150, 2) if chance.random() < 0.7 else (height, width * 2))
        )
        crop_height, crop_width = int(chance.integers(1, out[0] + 1)), int(chance.integers(1, out[1] + 1))
        top, left = int(chance.integers(0, out[0] - crop_height + 1)), int(chance.integers(0, out[1] - crop_width + 1))
        pixels = noise(int(height), int(width), seed=seed)
        image = Image.fromarray(pixels if seed % 2 else (pixels > 127).astype(np.uint8) * 255)
        crop = (top, left, crop_height, crop_width)
        np.testing.assert_array_equal(resize_crop(image, out, crop, name), by_pillow(image, out, crop, name))


@settings(max_examples=60, deadline=None)
@given(height=LENGTHS, width=LENGTHS, out_height=TARGETS, out_width=TARGETS, data=st.data())
def test_equal_to_pillow_as_a_property(
    height: int, width: int, out_height: int, out_width: int, data: st.DataObject
) -> None:
    """The same, with sizes that a search picks for trouble."""
    crop_height, crop_width = data.draw(st.integers(1, out_height)), data.draw(st.integers(1, out_width))
    top, left = data.draw(st.integers(0, out_height - crop_height)), data.draw(st.integers(0, out_width - crop_width))
    name = data.draw(st.sampled_from(RESAMPLES))
    image = Image.fromarray(noise(height, width, seed=height * width))
    size, crop = (out_height, out_width), (top, left, crop_height, crop_width)
    expected = by_pillow(image, size, crop, name)
    np.testing.assert_array_equal(resize_crop(image, size, crop, name), expected)
    if name != "nearest":
        integers = resize._integer_resize(image, size, resize.Box(*crop), resize.KERNELS[name])
        np.testing.assert_array_equal(integers, expected)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 300), (2, 500), (700, 3), (900, 100), (300, 2), (401, 4), (5, 5), (1200, 500), (640, 480)]
)
def test_strips_equal_pillow_in_the_usual_preprocessing(height: int, width: int, way: str) -> None:
    """Shortest edge to 64, middle 56: also where Pillow resizes columns before rows."""
    image = Image.fromarray(noise(height, width))
    scale = 64 / min(height, width)
    size = (64, int(width * scale)) if height <= width else (int(height * scale), 64)
    crop = ((size[0] - 56) // 2, (size[1] - 56) // 2, 56, 56)
    np.testing.assert_array_equal(resize_crop(image, size, crop), by_pillow(image, size, crop, "bicubic"))


def test_nearest_beyond_what_pillow_can_make() -> None:
    """Sizes past Pillow's are computed from the same rule."""
    image = Image.fromarray(noise(1, 7))
    size = (2**25, 2**25)
    assert resize_crop(image, size, (2**24, 2**25 - 2, 1, 2), "nearest").tolist() == [[noise(1, 7)[0, 6].tolist()] * 2]


SCRIPT = """
import resource, time
from PIL import Image
from dinokit.images import ImageTransform
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
transform = ImageTransform()
before, start = peak(), time.perf_counter()
for size in [(20000, 1), (1, 60000), (2000, 1), (1, 1), (2000, 3), (70000, 13), (6007, 5)]:
    assert transform(Image.effect_noise(size, 50)).shape == (3, 224, 224)
print(peak() - before, time.perf_counter() - start)
"""


def test_strips_take_little_memory_and_time() -> None:
    """20000 x 1 and its like, whose full resize would take gigabytes, are done in a moment and in megabytes."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes < 100
    assert seconds < 5


@pytest.mark.parametrize(
    ("mode", "crop", "name"),
    [
        ("L", (0, 0, 1, 1), "bicubic"),
        ("RGB", (0, 0, 1, 1), "cubic"),
        ("RGB", (0, 0, 0, 1), "bicubic"),
        ("RGB", (-1, 0, 2, 2), "bicubic"),
        ("RGB", (3, 0, 3, 1), "bicubic"),
    ],
)
def test_what_can_not_be_cropped_is_refused(mode: str, crop: tuple[int, int, int, int], name: Resample) -> None:
    """A crop must lie within the resized image, which must be RGB."""
    with pytest.raises((ValueError, TypeError)):  # TypeError where the run checks annotations
        resize_crop(Image.new(mode, (9, 9)), (5, 5), crop, name)
