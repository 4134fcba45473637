"""Images: whatever the source, decoded to upright RGB and transformed to what a network reads."""

from dinokit.images.decode import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, Decoded, decode
from dinokit.images.geometry import Cover, Exact, ShortestEdge
from dinokit.images.resize import resize_crop
from dinokit.images.transform import IMAGENET_MEAN, IMAGENET_STD, ImageTransform

__all__ = [
    "DEFAULT_FORMATS",
    "DEFAULT_MAX_PIXELS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Cover",
    "Decoded",
    "Exact",
    "ImageTransform",
    "ShortestEdge",
    "decode",
    "resize_crop",
]
