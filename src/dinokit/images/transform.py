"""`ImageTransform`: an RGB image to the normalised tensor that a network reads; data, not code paths.

Resize, centre crop, rescale, normalise, with Pillow's arithmetic on 8 bits and transformers' order of operations in
float, so that the same numbers come out as from the processors that the published models are used with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from dinokit.errors import ImageError
from dinokit.images.decode import Decoded, Source, decode
from dinokit.images.foreign import hf_fields, timm_fields
from dinokit.images.geometry import (
    CROP_ROUNDINGS,
    RESIZES,
    Cover,
    CropRounding,
    Exact,
    Resize,
    ShortestEdge,
    centre,
)
from dinokit.images.resize import RESAMPLES, Resample, resize_crop

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Raise when the same fields begin to give other numbers, so that embeddings of before and after are told apart.
ARITHMETIC_VERSION = 1
MAX_ASPECT_WITHOUT_CROP = 100
SHORTEST_EDGE_256 = ShortestEdge(256)

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """How images become input. The default is that of the published DINOv2 models: shortest edge 256, crop 224.

    `crop` is (height, width); a smaller image is padded with black. `mean` and `std` are of values after `rescale`. With
    a crop, any aspect ratio is fine, as only what the crop shows is resized; without one, the shorter side must be at
    least a hundredth of the longer (but for `Exact`), or the resized image could fill the memory.

    Raises:
        ValueError: a field is out of its range.
    """

    resize: Resize | None = SHORTEST_EDGE_256
    crop: tuple[int, int] | None = (224, 224)
    crop_rounding: CropRounding = "floor"
    resample: Resample = "bicubic"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    rescale: float = 1 / 255

    def __post_init__(self) -> None:
        sizes = [*asdict(self.resize).values()] if self.resize else []
        for size in [*sizes, *(self.crop or ())]:
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"a size of the transform is {size!r}; sizes are whole pixels, at least 1.")
        if self.resample not in RESAMPLES:
            raise ValueError(f"resample is {self.resample!r}; it must be one of {', '.join(RESAMPLES)}.")
        if self.crop_rounding not in CROP_ROUNDINGS:
            raise ValueError(f"crop_rounding is {self.crop_rounding!r}; it must be one of {', '.join(CROP_ROUNDINGS)}.")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must be three numbers each, no std zero.")

    @classmethod
    def dinov2(cls, crop_rounding: CropRounding = "floor") -> ImageTransform:
        """The default, as transformers does it; "half_even" for Meta's evaluation transform, off by a pixel at most."""
        return cls(crop_rounding=crop_rounding)

    @classmethod
    def squash(cls, size: int | tuple[int, int]) -> ImageTransform:
        """The whole image into `size`, aspect ratio not kept: Birder's transform of its DINOv2 models (518)."""
        height, width = (size, size) if isinstance(size, int) else size
        return cls(resize=Exact(height, width), crop=None)

    @classmethod
    def shortest_edge_crop(cls, size: int) -> ImageTransform:
        """Shortest edge to `size`, then the middle square: timm's transform of its DINOv2 models (518)."""
        return cls(resize=ShortestEdge(size), crop=(size, size), crop_rounding="half_even")

    @classmethod
    def cover_crop(cls, size: int | tuple[int, int]) -> ImageTransform:
        """Just large enough to cover `size`, then its middle: Birder's `simple_crop`."""
        height, width = (size, size) if isinstance(size, int) else size
        return cls(resize=Cover(height, width), crop=(height, width), crop_rounding="half_even")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ImageTransform:
        """From the content of a `preprocessor_config.json` of a BitImageProcessor, which DINOv2 models use.

        Raises:
            ValueError: another processor, or a setting that this transform can't express.
        """
        return cls(**hf_fields(config))

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> ImageTransform:
        """From timm's `pretrained_cfg`: `input_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean`, `std`.

        Raises:
            ValueError: a setting that this transform can't express.
        """
        return cls(**timm_fields(config))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageTransform:
        """The inverse of `to_dict`; lists may stand for tuples.

        Raises:
            ValueError: a field that is unknown or out of its range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"unknown fields of an image transform: {', '.join(unknown)}; known are {', '.join(sorted(known))}."
            )
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        if isinstance(resize := made.get("resize"), Mapping):
            kind = resize.get("kind")
            if kind not in RESIZES:
                raise ValueError(f"resize kind is {kind!r}; it must be one of {', '.join(RESIZES)}.")
            made["resize"] = RESIZES[kind](**{name: value for name, value in resize.items() if name != "kind"})
        return cls(**made)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        if self.resize is not None:
            kind = next(name for name, made in RESIZES.items() if isinstance(self.resize, made))
            values["resize"] = {"kind": kind, **asdict(self.resize)}
        return values

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ when the fields or the arithmetic do; for provenance."""
        text = json.dumps({"arithmetic": ARITHMETIC_VERSION, **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def at_size(self, size: tuple[int, int]) -> ImageTransform:
        """The same with a crop of `size` (height, width), the resize before it growing in proportion; a squash squashes to it."""
        match self.resize:
            case ShortestEdge(edge):
                scaled = ShortestEdge(round(min(size) * edge / min(self.crop or (edge, edge))))
                return replace(self, resize=scaled, crop=size)
            case Exact():
                return replace(self, resize=Exact(*size), crop=None)
            case _:
                return replace(self, crop=size)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(Height, width) of what an image of this size becomes."""
        return self.crop or (self.resize.target(height, width) if self.resize else (height, width))

    def __call__(self, image: Source | Decoded) -> Float32[Tensor, "3 h w"]:
        """One image as input. Whatever `decode` accepts is decoded by its default rules.

        Raises:
            ImageError: as `decode`; `aspect_ratio` without a crop, if one side is over a hundred times the other.
        """
        decoded = image if isinstance(image, Decoded) else decode(image)
        return torch.from_numpy(self._normalise(self.pixels(decoded)))

    def batch(self, images: Iterable[Source | Decoded]) -> Float[Tensor, "b 3 h w"]:
        """Several images as one input; without a crop they must come out equal in size.

        Raises:
            ValueError: no image, or results of different sizes.
            ImageError: as for one image.
        """
        ready = [self(image) for image in images]
        if not ready:
            raise ValueError("there is no image in the batch.")
        sizes = sorted({tuple(image.shape[1:]) for image in ready})
        if len(sizes) > 1:
            listed = ", ".join(f"{height} x {width}" for height, width in sizes[:8])
            raise ValueError(f"images of one batch come out as {listed}; give the transform a crop or an exact size.")
        return torch.stack(ready)

    def pixels(self, decoded: Decoded) -> UInt8[np.ndarray, "h w 3"]:
        """Resized and cropped, before normalising.

        Raises:
            ImageError: as for one image.
        """
        height, width = decoded.height, decoded.width
        target = self.resize.target(height, width) if self.resize else (height, width)
        if self.crop is None:
            short, long = sorted((height, width))
            if (
                self.resize is not None
                and not isinstance(self.resize, Exact)
                and long > MAX_ASPECT_WITHOUT_CROP * short
            ):
                raise ImageError(
                    "aspect_ratio",
                    f"{width} x {height} is more than {MAX_ASPECT_WITHOUT_CROP}:1 and would become "
                    f"{target[1]} x {target[0]}. Use a transform with a crop, or cut the image.",
                )
            return resize_crop(decoded.image, target, (0, 0, *target), self.resample)
        rows, columns = (
            centre(length, crop, self.crop_rounding) for length, crop in zip(target, self.crop, strict=True)
        )
        box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        inside = resize_crop(decoded.image, target, box, self.resample)
        if inside.shape[:2] == self.crop:
            return inside
        padded = np.zeros((*self.crop, 3), np.uint8)
        padded[rows.before : rows.before + box[2], columns.before : columns.before + box[3]] = inside
        return padded

    def _normalise(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "3 h w"]:
        """(pixel * rescale - mean) / std by looking up: 8 bits have 256 values, so each is computed once per colour."""
        # transformers' order: the product in float64, then float32 for the rest
        levels = (np.arange(256) * np.float64(self.rescale)).astype(np.float32)
        out = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel in range(3):
            table = (levels - np.float32(self.mean[channel])) / np.float32(self.std[channel])
            np.take(table, pixels[:, :, channel], out=out[channel])
        return out
