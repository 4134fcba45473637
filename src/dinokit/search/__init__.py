"""Looking things up in collections of embeddings: nearest, duplicates, clusters, a curated choice, outliers, other formats."""

from dinokit.search.index import Hit, Index
from dinokit.search.knn import METRICS, Metric, Neighbours, nearest
from dinokit.search.query import Region

__all__ = ["METRICS", "Hit", "Index", "Metric", "Neighbours", "Region", "nearest"]
