"""Where images come from: folders, lists, tar shards, tables; each listed in a stable order, each input with an id of its own."""

from dinokit.extract.sources.listing import Container, Entry, Source
from dinokit.extract.sources.places import open_sources
from dinokit.images import IMAGE_SUFFIXES, list_images

__all__ = ["IMAGE_SUFFIXES", "Container", "Entry", "Source", "list_images", "open_sources"]
