"""Features on disk: what a collection of vectors says of itself, its Parquet schema, reading it back in blocks."""

from dinokit.store.features import Block, FeatureSet
from dinokit.store.identity import Feature, Identity, identify

__all__ = ["Block", "Feature", "FeatureSet", "Identity", "identify"]
