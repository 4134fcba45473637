"""Retrieval on revisited Oxford and Paris: queries are parts of images, and lists say what each should find."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinokit.errors import ImageError
from dinokit.evals.datasets import DatasetError
from dinokit.evals.features import Watched, extract_features
from dinokit.evals.results import Result, identity_of
from dinokit.evals.retrieval import KS, read_ground_truth, retrieval_by_lists
from dinokit.images import decode
from dinokit.weights.load import Pretrained


def landmark_result(
    pre: Pretrained,
    images: str | Path,
    ground_truth: str | Path,
    *,
    ks: Sequence[int] = KS,
    batch_size: int = 32,
    workers: int = 2,
    watched: Watched = iter,
) -> Result:
    """Mean average precision and mean precision at k in Easy, Medium and Hard, by class tokens; images lie at `images`/NAME.jpg.

    Raises:
        DatasetError: the lists can't be used, or an image is missing or can't be read: the benchmark needs all.
    """
    truth = read_ground_truth(ground_truth)
    folder, started = Path(images), time.perf_counter()
    queries = [_part(folder / f"{name}.jpg", box) for name, box in zip(truth.queries, truth.boxes, strict=True)]
    found = []
    for sources in (queries, [str(folder / f"{name}.jpg") for name in truth.gallery]):
        features = extract_features(pre, sources, batch_size=batch_size, workers=workers, watched=watched)
        if features.failed:
            raise DatasetError(
                f"{features.failed[0][0]} can't be used: {features.failed[0][1]}; the benchmark needs all images."
            )
        found.append(features.vectors)
    done = time.perf_counter()
    scores = retrieval_by_lists(found[0], found[1], truth, ks=ks)
    metrics: dict[str, float] = {}
    for setup, score in scores.items():
        metrics[f"mAP, {setup}"] = score.map
        metrics |= {f"mean precision at {k}, {setup}": value for k, value in score.precision_at.items()}
    return Result(
        task="retrieval",
        data={"source": str(ground_truth), "queries": len(truth.queries), "gallery": len(truth.gallery)},
        model=identity_of(pre, "cls"),
        settings={"k": list(ks), "ap": "trapezoid"},
        metrics=metrics,
        seconds={"features": done - started, "evaluation": time.perf_counter() - done},
        details={setup: {"queries": score.queries} for setup, score in scores.items()},
    )


def _part(path: Path, box: tuple[float, float, float, float] | None) -> Any:
    """The part of a query's image that asks."""
    if box is None:
        return str(path)
    try:
        picture = decode(str(path)).image
    except ImageError as error:
        raise DatasetError(f"{path} can't be used: {error}") from error
    left, top, right, bottom = (round(value) for value in box)
    inside = (max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DatasetError(
            f"{path}: the box {box} of the query lies outside of its {picture.width} x {picture.height} pixels."
        )
    return picture.crop(inside)
