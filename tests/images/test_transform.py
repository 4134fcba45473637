"""`ImageTransform`: sizes, places and numbers of every preprocessing that DINOv2 models are used with."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dinokit.errors import ImageError
from dinokit.images import Cover, Exact, ImageTransform, ShortestEdge, decode
from dinokit.images.geometry import centre
from tests.images.corpus import exif, noise, photo, saved
from tests.tolerances import SAME_MATH, max_error

BIRDER = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def normalised(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """The textbook formula in float64."""
    values = (pixels / 255 - np.array(mean)) / np.array(std)
    return torch.from_numpy(values.transpose(2, 0, 1))


def test_the_default_is_the_published_preprocessing() -> None:
    """Shortest edge 256, middle 224, ImageNet's mean and deviation."""
    image = Image.fromarray(noise(300, 480))
    transform = ImageTransform()
    resized = np.asarray(image.resize((409, 256), Image.Resampling.BICUBIC))[16:240, 92:316]
    got = transform(image)
    assert got.dtype == torch.float32
    assert max_error(got, normalised(resized, transform.mean, transform.std).float()) < SAME_MATH
    assert ImageTransform.dinov2() == transform
    assert ImageTransform.dinov2("half_even").crop_rounding == "half_even"


def test_squash_takes_the_whole_image() -> None:
    """Birder's transform: straight to the size, no crop."""
    image = Image.fromarray(noise(40, 90))
    transform = ImageTransform.squash(70)
    resized = np.asarray(image.resize((70, 70), Image.Resampling.BICUBIC))
    assert max_error(transform(image), normalised(resized, transform.mean, transform.std).float()) < SAME_MATH
    assert ImageTransform.squash((28, 42))(image).shape == (3, 28, 42)


@pytest.mark.parametrize(
    ("rule", "size", "target"),
    [
        (ShortestEdge(256), (480, 640), (256, 341)),
        (ShortestEdge(256), (640, 480), (341, 256)),
        (ShortestEdge(256), (256, 256), (256, 256)),
        (ShortestEdge(256), (1, 2000), (256, 512000)),
        (ShortestEdge(7), (3, 5), (7, 11)),
        (Exact(5, 6), (480, 640), (5, 6)),
        (Cover(224, 224), (480, 640), (224, 298)),
        (Cover(224, 224), (640, 480), (298, 224)),
        (Cover(100, 300), (480, 640), (225, 300)),
        (Cover(300, 100), (480, 640), (300, 400)),
        (Cover(64, 64), (3, 3), (64, 64)),
    ],
)
def test_target_sizes(rule: ShortestEdge | Exact | Cover, size: tuple[int, int], target: tuple[int, int]) -> None:
    """Sizes after the resize are those of transformers, torchvision and Birder."""
    assert rule.target(*size) == target


@pytest.mark.parametrize(
    ("length", "crop", "floor", "half_even"),
    [
        (256, 224, (16, 240, 0), (16, 240, 0)),
        (257, 224, (16, 240, 0), (16, 240, 0)),
        (259, 224, (17, 241, 0), (18, 242, 0)),
        (224, 224, (0, 224, 0), (0, 224, 0)),
        (21, 40, (0, 21, 10), (0, 21, 9)),
        (20, 40, (0, 20, 10), (0, 20, 10)),
    ],
)
def test_quirk_odd_crops_differ_by_a_pixel_between_libraries(
    length: int, crop: int, floor: tuple[int, int, int], half_even: tuple[int, int, int]
) -> None:
    """transformers cuts halves off, torchvision rounds them to even; their paddings differ too."""
    assert centre(length, crop, "floor") == floor
    assert centre(length, crop, "half_even") == half_even


def test_small_images_are_padded_with_black() -> None:
    """Where the crop is larger than the image, black surrounds it."""
    transform = ImageTransform(resize=None, crop=(6, 2), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    got = transform(Image.new("RGB", (4, 3), (255, 255, 255)))
    assert got[0].tolist() == [[0, 0], [0, 0], [1, 1], [1, 1], [1, 1], [0, 0]]


def test_any_source_gives_the_same_input() -> None:
    """A path, bytes, an open image, an array and a decoded image are one image."""
    image = photo(50, 70)
    transform = ImageTransform(resize=ShortestEdge(40), crop=(28, 28))
    data = saved(image, "PNG")
    expected = transform(image)
    for source in (data, np.asarray(image), decode(data)):
        assert torch.equal(transform(source), expected)
    upright = transform(saved(image, "PNG", exif=exif(6)))
    assert torch.equal(upright, transform(image.transpose(Image.Transpose.ROTATE_270)))


def test_the_output_size_is_known_before() -> None:
    """`output_size` says what will come out, for every kind of transform."""
    for transform in (
        ImageTransform(),
        ImageTransform.squash(42),
        ImageTransform.shortest_edge_crop(56),
        ImageTransform.cover_crop((28, 42)),
        ImageTransform(crop=None, resize=ShortestEdge(30)),
        ImageTransform(crop=None, resize=None),
        ImageTransform(crop=(300, 40), resize=Cover(31, 32)),
    ):
        for size in ((33, 70), (70, 33), (50, 50)):
            assert tuple(transform(Image.fromarray(noise(*size))).shape[1:]) == transform.output_size(*size)


def test_batches_are_stacked_and_unequal_ones_refused() -> None:
    """A batch is its images one by one; where sizes differ, the message names them."""
    images = [photo(50, 70), photo(70, 50)]
    transform = ImageTransform(resize=ShortestEdge(32), crop=(28, 28))
    assert torch.equal(transform.batch(images), torch.stack([transform(image) for image in images]))
    with pytest.raises(ValueError, match="32 x 44, 44 x 32"):
        ImageTransform(resize=ShortestEdge(32), crop=None).batch(images)
    with pytest.raises(ValueError, match="no image"):
        transform.batch([])


def test_extreme_shapes_need_a_crop() -> None:
    """With a crop any shape is fine; without one a strip would become an image of gigabytes and is refused."""
    strip = Image.new("RGB", (2000, 1))
    assert ImageTransform()(strip).shape == (3, 224, 224)
    assert ImageTransform.squash(28)(strip).shape == (3, 28, 28)
    with pytest.raises(ImageError) as caught:
        ImageTransform(crop=None)(strip)
    assert caught.value.code == "aspect_ratio"


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(),
        ImageTransform.squash((70, 84)),
        ImageTransform.cover_crop(56),
        ImageTransform(resize=None, crop=None, resample="lanczos", rescale=1.0, crop_rounding="half_even"),
    ],
)
def test_transforms_survive_json(transform: ImageTransform) -> None:
    """What is stored with embeddings gives the same transform back, with the same fingerprint."""
    again = ImageTransform.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again == transform
    assert again.fingerprint == transform.fingerprint


def test_fingerprints_are_pinned_and_differ() -> None:
    """A fingerprint changes with any field, and never between releases unless the numbers do."""
    assert ImageTransform().fingerprint == "608b009fb3e65be9"
    others = {
        ImageTransform(resample="bilinear"),
        ImageTransform.squash(518),
        ImageTransform(crop_rounding="half_even"),
    }
    assert len({transform.fingerprint for transform in (ImageTransform(), *others)}) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"crop": (0, 5)},
        {"crop": (5.0, 5)},
        {"resize": ShortestEdge(0)},
        {"resample": "cubic"},
        {"crop_rounding": "up"},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0, 1.0)},
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, object]) -> None:
    """A transform that can't work can't be made."""
    with pytest.raises((ValueError, TypeError)):  # TypeError where the run checks annotations
        ImageTransform(**fields)


def test_unknown_fields_are_refused() -> None:
    """A stored transform of a later version is not read half."""
    for wrong in ({"colour": "srgb"}, {"resize": {"kind": "longest_edge", "size": 5}}):
        with pytest.raises(ValueError, match=r"colour|longest_edge"):
            ImageTransform.from_dict(wrong)


def test_settings_of_transformers_are_translated() -> None:
    """Every switch of a `preprocessor_config.json` has its effect."""
    assert ImageTransform.from_hf({}).crop == (224, 224)
    config = {"image_processor_type": "BitImageProcessorFast", "size": 70, "crop_size": {"height": 56, "width": 42}}
    got = ImageTransform.from_hf({**config, "resample": 2, "image_mean": 0.5, "image_std": [0.1, 0.2, 0.3]})
    assert (got.resize, got.crop, got.resample) == (ShortestEdge(70), (56, 42), "bilinear")
    assert (got.mean, got.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    off = ImageTransform.from_hf(dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), False))
    assert off(noise(5, 6))[:, 0, 0].tolist() == noise(5, 6)[0, 0].tolist()
    assert ImageTransform.from_hf({"size": {"height": 5, "width": 6}}).resize == Exact(5, 6)


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "ViTImageProcessor"},
        {"size": {"longest_edge": 5}},
        {"crop_size": {"shortest_edge": 5}},
        {"resample": 77},
        {"do_pad": True},
        {"image_mean": [0.5]},
    ],
)
def test_settings_of_transformers_without_counterpart_are_refused(config: dict[str, object]) -> None:
    """Nothing that changes pixels is dropped in silence."""
    with pytest.raises(ValueError, match=next(iter(config))):
        ImageTransform.from_hf(config)


def test_settings_of_timm_are_translated() -> None:
    """timm's DINOv2 configuration gives shortest edge 518 and its middle; squash and crop shares work."""
    config = {"input_size": (3, 518, 518), "crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center"}
    assert ImageTransform.from_timm(config) == ImageTransform.shortest_edge_crop(518)
    assert ImageTransform.from_timm({"input_size": (3, 224, 224), "crop_pct": 0.875}).resize == ShortestEdge(256)
    squashed = ImageTransform.from_timm({**config, "input_size": [3, 28, 42], "crop_mode": "squash", **BIRDER})
    assert (squashed.resize, squashed.crop, squashed.mean) == (Exact(28, 42), (28, 42), (0.5, 0.4, 0.3))


@pytest.mark.parametrize(
    "config",
    [{"crop_mode": "border"}, {"input_size": (1, 28, 28)}, {"input_size": (3, 28, 42)}, {"interpolation": "random"}],
)
def test_settings_of_timm_without_counterpart_are_refused(config: dict[str, object]) -> None:
    """What this transform can't do is said, not guessed."""
    with pytest.raises(ValueError, match=next(iter(config))):
        ImageTransform.from_timm(config)
