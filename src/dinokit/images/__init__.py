"""Images: whatever the source, decoded to upright RGB and transformed to what a network reads.

The fast way is imported on first use: a process that prepares one image has no time for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dinokit.images.decode import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, Decoded, decode
from dinokit.images.geometry import Cover, Exact, ShortestEdge
from dinokit.images.listing import IMAGE_SUFFIXES, is_image_name, list_images
from dinokit.images.resize import resize_crop
from dinokit.images.transform import IMAGENET_MEAN, IMAGENET_STD, ImageTransform

if TYPE_CHECKING:
    from dinokit.images.fast import ExactPreparation, FastTransform, Preparation, Prepared

_LATER = ("ExactPreparation", "FastTransform", "Preparation", "Prepared")

__all__ = [
    "DEFAULT_FORMATS",
    "DEFAULT_MAX_PIXELS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "IMAGE_SUFFIXES",
    "Cover",
    "Decoded",
    "Exact",
    "ExactPreparation",
    "FastTransform",
    "ImageTransform",
    "Preparation",
    "Prepared",
    "ShortestEdge",
    "decode",
    "is_image_name",
    "list_images",
    "resize_crop",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'dinokit.images' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module("dinokit.images.fast"), name)
    return value
