"""A collection of images to features: what is in it, and one row for each of them."""

from dinokit.extract.rows import Row, embed_images
from dinokit.extract.sources import IMAGE_SUFFIXES, list_images

__all__ = ["IMAGE_SUFFIXES", "Row", "embed_images", "list_images"]
