"""The steps of `BitImageProcessor` on single images: Pillow images, arrays and tensors to channels-first arrays.

Promise: every step gives the numbers of transformers 5.23's Pillow backend, quirks included; a crop after a resize costs
memory for the crop only.
Source: behaviour of transformers 5.23 (`image_processing_backends`, `image_transforms`), measured and pinned by tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor

from dinokit.images.geometry import ShortestEdge, centre
from dinokit.images.resize import RESAMPLES, resize_crop

FIRST, LAST = "channels_first", "channels_last"
CHANNELS = (1, 3, 4)

Array = Shaped[np.ndarray, "c h w"]
Changed = Shaped[np.ndarray, "_ _ _"]  # the same order of axes, other lengths
Size = Mapping[str, int]


def flat_list(images: Any) -> list[Any]:
    """One image, a batch array, a list or a list of lists, as a list of images.

    Raises:
        ValueError: nothing in it, or something that is no image.
    """
    if isinstance(images, list | tuple):
        if images and all(isinstance(item, list | tuple) for item in images):
            images = [image for group in images for image in group]
        found = [image for item in images for image in flat_list(item)] if images else []
    elif isinstance(images, Image.Image):
        found = [images]
    elif isinstance(images, np.ndarray | Tensor) and images.ndim in (3, 4):
        found = [images] if images.ndim == 3 else list(images)
    else:
        shape = f" of shape {tuple(images.shape)}" if isinstance(images, np.ndarray | Tensor) else ""
        raise ValueError(
            f"Invalid image: {type(images).__name__}{shape}. Give PIL images, or numpy arrays or torch tensors with 3 "
            f"dimensions (4 for a batch), or lists of them."
        )
    if not found:
        raise ValueError("Invalid images: the list is empty.")
    return found


def to_array(image: Any, do_convert_rgb: bool, input_data_format: str | None) -> Changed:
    """An image with channels first; as RGB if asked, with transparency over white.

    Raises:
        ValueError: the place of the channels can't be told, or a float RGBA array leaves 0 to 1.
    """
    if isinstance(image, Image.Image):
        values = np.array(_pillow_rgb(image) if do_convert_rgb else image)
        return values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    layout = input_data_format or _layout(image.shape)
    values = np.moveaxis(image, -1, 0) if layout == LAST else image
    return _array_rgb(values) if do_convert_rgb else values


def _pillow_rgb(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _layout(shape: tuple[int, ...]) -> str:
    if shape[0] in CHANNELS:
        return FIRST  # also where both ends fit: transformers' assumption
    if shape[2] in CHANNELS:
        return LAST
    raise ValueError(f"Unable to infer channel dimension format of shape {shape}; pass input_data_format.")


def _array_rgb(values: Array) -> Changed:
    if values.shape[0] == 1:
        return np.repeat(values, 3, axis=0)
    if values.shape[0] != 4:
        return values
    if np.issubdtype(values.dtype, np.floating) and (values.min() < 0.0 or values.max() > 1.0):
        raise ValueError(
            f"an RGBA array of floats holds [{values.min()}, {values.max()}]; the values must lie in [0, 1] to become RGB."
        )
    whole = np.issubdtype(values.dtype, np.integer)
    white = 255 if whole else 1.0
    alpha = values[3:4] / white
    mixed = alpha * values[:3] + (1 - alpha) * white
    rgb: Changed = (np.round(mixed) if whole else mixed).astype(values.dtype)
    return rgb


def target_size(height: int, width: int, size: Size) -> tuple[int, int]:
    """(Height, width) that `size` asks for.

    Raises:
        ValueError: keys of no known meaning.
    """
    match dict(size):
        case {"shortest_edge": short, "longest_edge": long} if short and long:
            return _within(height, width, short, long)
        case {"shortest_edge": short} if short:
            return ShortestEdge(short).target(height, width)
        case {"max_height": tall, "max_width": wide} if tall and wide:
            scale = min(wide / width, tall / height)
            return int(height * scale), int(width * scale)
        case {"height": tall, "width": wide} if tall and wide:
            return tall, wide
    raise ValueError(
        f"Size must hold 'shortest_edge', or 'height' and 'width', or 'max_height' and 'max_width'. Got {size}."
    )


def _within(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """Shorter side to `short`, unless the longer one would pass `long`, which then decides."""
    lesser, greater = sorted((float(height), float(width)))
    exact = float(short)
    if greater / lesser * short > long:
        exact = long * lesser / greater
        short = round(exact)
    if min(height, width) == short:
        return height, width
    return (int(exact * height / width), short) if width < height else (short, int(exact * width / height))


def resize(image: Array, size: Size, resample: int, crop: tuple[int, int] | None) -> Changed:
    """Resized by Pillow on 8 bits, and if `crop` is given, its middle, padded with zeros where it is larger.

    Floats in [0, 1] are cut to 8 bits before and divided by 255 after, as transformers does; other values must be whole
    numbers in [0, 255] and come back as uint8.

    Raises:
        ValueError: other values, sizes or filters.
    """
    pixels, scaled = _to_bytes(image)
    target = target_size(pixels.shape[0], pixels.shape[1], size)
    name = Image.Resampling(resample).name.lower() if resample in list(Image.Resampling) else ""
    if crop is not None and min(target) and pixels.shape[2] == 3 and name in RESAMPLES:
        rows, columns = (centre(length, wanted, "floor") for length, wanted in zip(target, crop, strict=True))
        box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        if min(box[2:]) > 0:
            inside = resize_crop(Image.fromarray(pixels), target, box, name)
            return center_crop(_back(inside, scaled), crop)
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    resized = np.array(Image.fromarray(squeezed).resize((target[1], target[0]), resample))
    whole = _back(resized[..., None] if resized.ndim == 2 else resized, scaled)
    return whole if crop is None else center_crop(whole, crop)


def _to_bytes(image: Array) -> tuple[UInt8[np.ndarray, "h w c"], bool]:
    values = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    if values.dtype == np.uint8:
        return values, False
    with np.errstate(invalid="ignore"):  # NaN has no integer; the comparison below then fails, as it should
        whole = np.allclose(values, values.astype(int))
    low, high = values.min(), values.max()
    if whole and low >= 0 and high <= 255:
        return values.astype(np.uint8), False
    if not whole and low >= 0 and high <= 1:
        # quirk: cut off, not rounded; `do_rescale` will scale a second time
        return (values.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), True
    raise ValueError(
        f"an array holds [{low}, {high}], which can't become 8 bits for the resize. Give whole numbers in [0, 255] or "
        f"floats in [0, 1]."
    )


def _back(pixels: UInt8[np.ndarray, "h w c"], scaled: bool) -> Array:
    values = np.moveaxis(pixels, -1, 0)
    return rescale(values, 1 / 255) if scaled else values


def center_crop(image: Array, crop: tuple[int, int]) -> Changed:
    """The middle `crop` = (height, width), padded with zeros where the image is smaller."""
    rows, columns = (centre(length, wanted, "floor") for length, wanted in zip(image.shape[1:], crop, strict=True))
    inside = image[:, rows.start : rows.stop, columns.start : columns.stop]
    if inside.shape[1:] == crop:
        return inside
    padded = np.zeros_like(image, shape=(image.shape[0], *crop))
    height, width = inside.shape[1:]
    padded[:, rows.before : rows.before + height, columns.before : columns.before + width] = inside
    return padded


def rescale(image: Array, factor: float) -> Array:
    """Times `factor`, the product in float64, the result float32."""
    return (image.astype(np.float64) * factor).astype(np.float32)


def normalize(image: Array, mean: float | Sequence[float], std: float | Sequence[float]) -> Array:
    """(image - mean) / std for each channel, in the image's float type, float32 for whole numbers.

    Raises:
        ValueError: as many means or deviations as channels are needed.
    """
    values = image if np.issubdtype(image.dtype, np.floating) else image.astype(np.float32)
    constants = []
    for name, given in (("mean", mean), ("std", std)):
        listed = list(given) if isinstance(given, Sequence | np.ndarray) else [given] * len(values)
        if len(listed) != len(values):
            raise ValueError(f"{name} must have {len(values)} elements, one a channel, got {len(listed)}.")
        constants.append(np.array(listed, dtype=values.dtype)[:, None, None])
    done: Array = (values - constants[0]) / constants[1]
    return done


@dataclass(frozen=True)
class Steps:
    """What is done to one image; a step that is None is left out. `resize` is (size, filter), `normalize` (mean, std)."""

    to_rgb: bool
    resize: tuple[Size, int] | None
    crop: tuple[int, int] | None
    rescale: float | None
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None

    def apply(self, image: Any, input_data_format: str | None) -> Changed:
        """The image after all steps.

        Raises:
            ValueError: as each step.
        """
        values = to_array(image, self.to_rgb, input_data_format)
        if self.resize is not None:
            values = resize(values, *self.resize, self.crop)
        elif self.crop is not None:
            values = center_crop(values, self.crop)
        if self.rescale is not None:
            values = rescale(values, self.rescale)
        return values if self.normalize is None else normalize(values, *self.normalize)
