"""Birder's inference transform as an `ImageTransform`.

Source: Birder 0.8.4, `classification_transform`: PIL's bicubic on the image, then a crop from its middle, then numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dinokit.images import Cover, Exact, ImageTransform


def classification_transform(
    size: tuple[int, int],
    rgb_values: Mapping[str, Sequence[float]],
    center_crop: float = 1.0,
    simple_crop: bool = False,
) -> ImageTransform:
    """A function of one image that gives a normalised tensor (3, height, width) for `size` = (height, width).

    The whole image is squashed to `size` / `center_crop`, whatever its shape; with `simple_crop` it keeps its shape and just
    covers that size. Then `size` is cut from the middle, black where a `center_crop` above 1 leaves nothing. `rgb_values` are
    "mean" and "std" of values in 0 to 1. Takes whatever `dinokit.images.decode` does, by its rules: upright, as RGB.

    Raises:
        ValueError: a size, a crop or statistics out of range.
    """
    height, width = size
    if not center_crop > 0:
        raise ValueError(f"center_crop is {center_crop}; it must be above 0 (1.0 keeps the whole image).")
    mean, std = _triple(rgb_values, "mean"), _triple(rgb_values, "std")
    target = int(height / center_crop), int(width / center_crop)
    return ImageTransform(
        resize=Cover(*target) if simple_crop else Exact(*target),
        crop=(height, width) if simple_crop or target != (height, width) else None,
        crop_rounding="half_even",
        mean=mean,
        std=std,
    )


def _triple(rgb_values: Mapping[str, Sequence[float]], key: str) -> tuple[float, float, float]:
    values = rgb_values.get(key, ())
    if len(values) != 3:
        raise ValueError(f"rgb_values must hold three numbers under {key!r}; it holds {dict(rgb_values)}.")
    return float(values[0]), float(values[1]), float(values[2])
