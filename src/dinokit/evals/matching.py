"""Keypoints of one image found again in another by the nearest token, scored by PCK; pairs as SPair-71k has them.

Source: Min et al. 2019 (SPair-71k): within alpha times the longer side of the object's box; per image, then averaged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dinokit.analysis.matching import nearest, patch_centres, pck
from dinokit.evals.datasets import DatasetError

ALPHAS = (0.01, 0.05, 0.1)


@dataclass(frozen=True)
class KeypointPair:
    """Two images, points (row, column in pixels) in each that belong together, and (height, width) of the object in the second."""

    source: str
    target: str
    source_points: Float[Tensor, "p 2"]
    target_points: Float[Tensor, "p 2"]
    box: tuple[float, float]
    category: str = ""


@dataclass(frozen=True, kw_only=True)
class MatchingScore:
    """PCK by alpha: mean over pairs of each pair's share, and share of all points."""

    per_pair: dict[float, float]
    per_point: dict[float, float]
    pairs: int
    points: int


def transfer_points(
    source: Float[Tensor, "n d"],
    target: Float[Tensor, "m d"],
    points: Float[Tensor, "p 2"],
    grids: tuple[tuple[int, int], tuple[int, int]],
    sizes: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Tensor, "p 2"]:
    """Where in the second image (row, column in pixels) the token nearest to that of each point's patch has its centre.

    `grids` and `sizes` (height, width in pixels) are those of the first and of the second image, which their grids cover.
    """
    (rows, columns), (height, width) = grids[0], sizes[0]
    row = (points[:, 0] * rows / height).long().clamp(0, rows - 1)
    column = (points[:, 1] * columns / width).long().clamp(0, columns - 1)
    found = nearest(source[row * columns + column], target).second
    scale = torch.tensor([sizes[1][0] / grids[1][0], sizes[1][1] / grids[1][1]])
    return patch_centres(grids[1], 1)[found.cpu()] * scale


def judge_points(
    predicted: Sequence[Float[Tensor, "p 2"]], pairs: Sequence[KeypointPair], alphas: Sequence[float] = ALPHAS
) -> MatchingScore:
    """PCK at each alpha.

    Raises:
        ValueError: no pair, or a pair without points.
    """
    if not pairs:
        raise ValueError("there is no pair of images to judge.")
    counts = [len(pair.target_points) for pair in pairs]
    shares = {
        alpha: [pck(found, pair.target_points, pair.box, alpha) for found, pair in zip(predicted, pairs, strict=True)]
        for alpha in alphas
    }
    return MatchingScore(
        per_pair={alpha: sum(values) / len(pairs) for alpha, values in shares.items()},
        per_point={
            alpha: sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
            for alpha, values in shares.items()
        },
        pairs=len(pairs),
        points=sum(counts),
    )


def read_keypoint_pairs(root: str | Path, split: str = "test") -> list[KeypointPair]:
    """Pairs of a folder SPair-71k (PairAnnotation/{split}/*.json, JPEGImages/CATEGORY), in the order of the files' names.

    Raises:
        DatasetError: a folder is missing, or a file is malformed.
    """
    root = Path(root)
    files = sorted((root / "PairAnnotation" / split).glob("*.json"))
    if not files:
        raise DatasetError(f"{root} has no PairAnnotation/{split}/*.json; name the folder SPair-71k.")
    return [_spair(path, root / "JPEGImages") for path in files]


def _spair(path: Path, images: Path) -> KeypointPair:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        left, top, right, bottom = (float(value) for value in content["trg_bndbox"])
        folder = images / str(content["category"])
        points = [_points(content[name]) for name in ("src_kps", "trg_kps")]
        names = [str(folder / str(content[name])) for name in ("src_imname", "trg_imname")]
        box = (bottom - top, right - left)
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is no pair of SPair-71k: {type(error).__name__} at {error}.") from error
    if len(points[0]) != len(points[1]) or not len(points[0]) or max(box) <= 0:
        raise DatasetError(
            f"{path}: {len(points[0])} and {len(points[1])} points, box {box}; expected as many in both, at least one, and a box."
        )
    return KeypointPair(names[0], names[1], points[0], points[1], box, str(content["category"]))


def _points(values: Any) -> Float[Tensor, "p 2"]:
    """Written as (x, y)."""
    return torch.tensor([[float(y), float(x)] for x, y in values]).view(-1, 2)
