"""A collection of images to features: what is in it, and one row for each of them.

Names are imported on first use, so that a look at a folder's lock does not import PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinokit.extract.batch import embed_batch
    from dinokit.extract.forward import Forward
    from dinokit.extract.job import ExtractJob, features_of
    from dinokit.extract.options import FailureLimitError, JobOptions
    from dinokit.extract.plan import Plan, Shard, Status
    from dinokit.extract.prepare import How
    from dinokit.extract.rows import DecodeOptions, Row, embed_images
    from dinokit.extract.run import Summary
    from dinokit.extract.shard import commit
    from dinokit.extract.shards import embed_shard
    from dinokit.extract.sources import IMAGE_SUFFIXES, Container, Entry, Source, list_images, open_sources
    from dinokit.extract.sources.places import Columns

_HOMES = {
    "batch": ("embed_batch",),
    "forward": ("Forward",),
    "job": ("ExtractJob", "features_of"),
    "options": ("FailureLimitError", "JobOptions"),
    "plan": ("Plan", "Shard", "Status"),
    "prepare": ("How",),
    "rows": ("DecodeOptions", "Row", "embed_images"),
    "shard": ("commit",),
    "shards": ("embed_shard",),
    "run": ("Summary",),
    "sources": ("IMAGE_SUFFIXES", "Container", "Entry", "Source", "list_images", "open_sources"),
    "sources.places": ("Columns",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "IMAGE_SUFFIXES",
    "Columns",
    "Container",
    "DecodeOptions",
    "Entry",
    "ExtractJob",
    "FailureLimitError",
    "Forward",
    "How",
    "JobOptions",
    "Plan",
    "Row",
    "Shard",
    "Source",
    "Status",
    "Summary",
    "commit",
    "embed_batch",
    "embed_images",
    "embed_shard",
    "features_of",
    "list_images",
    "open_sources",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dinokit.extract' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dinokit.extract.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
