"""Images: whatever the source, decoded to upright RGB and transformed to what a network reads."""

from dinokit.images.decode import DEFAULT_FORMATS, DEFAULT_MAX_PIXELS, Decoded, decode
from dinokit.images.fast import ExactPreparation, FastTransform, Preparation, Prepared
from dinokit.images.geometry import Cover, Exact, ShortestEdge
from dinokit.images.listing import IMAGE_SUFFIXES, is_image_name, list_images
from dinokit.images.resize import resize_crop
from dinokit.images.transform import IMAGENET_MEAN, IMAGENET_STD, ImageTransform

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
