"""Segmentation, depth, video and matching on data sets, each from a model and a folder to a `Result`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from os.path import commonpath
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from dinokit.evals import depth, matching, segmentation, video
from dinokit.evals.annotations import read_depth, read_mask
from dinokit.evals.datasets import DatasetError, Paired, Sequence2017
from dinokit.evals.depth import INDOORS, DepthRange
from dinokit.evals.features import CACHE_BYTES, DenseTokens, Watched, batches, read_tokens, squashed, whole_patches
from dinokit.evals.masks import VideoScore, judge_video
from dinokit.evals.metrics import IGNORED, Segmentation
from dinokit.evals.results import Result, identity_of
from dinokit.images import decode
from dinokit.weights.load import Pretrained

# blocks that DINOv2's depth heads read, by the depth of the network
DEPTH_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}


def segmentation_result(
    pre: Pretrained,
    train: Paired,
    test: Paired,
    *,
    num_classes: int | None = None,
    zero_is_other: bool = False,
    size: int = 518,
    blocks: int = 1,
    steps: int = segmentation.STEPS,
    batch_size: int = segmentation.BATCH_SIZE,
    rate: float = segmentation.LEARNING_RATE,
    label_size: int | None = None,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    watched: Watched = iter,
) -> Result:
    """A linear layer on patch tokens of the last `blocks` blocks, trained on `train` and judged on `test`.

    `label_size` is that of the masks it learns from, in pixels; by default the input's. Without `num_classes`, the train masks are
    read once to count them.

    Raises:
        DatasetError: a mask can't be used.
        ImageError: an image can't be read.
        ValueError: a setting that doesn't fit.
    """
    started = time.perf_counter()
    masks = [_Masks(part, zero_is_other) for part in (train, test)]
    num_classes = num_classes or masks[0].count()
    tokens = [DenseTokens(pre, part.images, size, blocks=blocks, cache_bytes=cache_bytes) for part in (train, test)]
    at = label_size or tokens[0].size
    head = segmentation.fit_segmentation(
        tokens[0], masks[0], len(tokens[0]), tokens[0].grid, tokens[0].width, num_classes, (at, at),
        steps=steps, batch_size=batch_size, rate=rate, seed=seed, device=pre.device, watched=watched,
    )  # fmt: skip
    fitted = time.perf_counter()
    score = segmentation.judge_segmentation(
        lambda i: head(tokens[1]([i]), tokens[1].grid)[0], masks[1], len(tokens[1]), num_classes, watched=watched
    )
    settings = {
        "size": tokens[0].size, "blocks": blocks, "steps": steps, "batch_size": batch_size, "rate": rate, "label_size": at,
        "seed": seed, "num_classes": num_classes, "zero_is_other": zero_is_other,
    }  # fmt: skip
    seconds = {"fit": fitted - started, "evaluation": time.perf_counter() - fitted}
    return _segmented("segmentation", pre, (train, test), settings, score, seconds)


def in_context_result(
    pre: Pretrained,
    train: Paired,
    test: Paired,
    *,
    num_classes: int | None = None,
    zero_is_other: bool = False,
    size: int = 518,
    k: int = segmentation.NEIGHBOURS,
    temperature: float = segmentation.TEMPERATURE,
    bank_size: int = segmentation.BANK_SIZE,
    seed: int = 0,
    watched: Watched = iter,
) -> Result:
    """Nearest labelled patches of `train` give each patch of `test` its label; nothing is trained.

    Raises:
        DatasetError: a mask can't be used.
        ImageError: an image can't be read.
        ValueError: a setting that doesn't fit.
    """
    started = time.perf_counter()
    masks = [_Masks(part, zero_is_other) for part in (train, test)]
    num_classes = num_classes or masks[0].count()
    tokens = [DenseTokens(pre, part.images, size, cache_bytes=0) for part in (train, test)]
    bank, labels = segmentation.build_bank(
        tokens[0], masks[0], len(tokens[0]), tokens[0].grid, pre.config.patch_size, num_classes,
        bank_size=bank_size, seed=seed, watched=watched,
    )  # fmt: skip
    bank, labels = bank.to(pre.device), labels.to(pre.device)
    built = time.perf_counter()

    def scores(number: int) -> Tensor:
        found = segmentation.in_context(tokens[1]([number])[0], bank, labels, k=k, temperature=temperature)
        maps: Tensor = found.T.unflatten(1, tokens[1].grid)
        return maps

    score = segmentation.judge_segmentation(scores, masks[1], len(tokens[1]), num_classes, watched=watched)
    settings = {
        "size": tokens[0].size, "k": k, "temperature": temperature, "bank": len(bank), "seed": seed, "num_classes": num_classes,
        "zero_is_other": zero_is_other,
    }  # fmt: skip
    seconds = {"bank": built - started, "evaluation": time.perf_counter() - built}
    return _segmented("in-context", pre, (train, test), settings, score, seconds)


def depth_result(
    pre: Pretrained,
    train: Paired,
    test: Paired,
    *,
    size: int = 518,
    blocks: int = 1,
    unit: float = 1000.0,
    reach: DepthRange = INDOORS,
    steps: int = depth.STEPS,
    batch_size: int = depth.BATCH_SIZE,
    rate: float = depth.LEARNING_RATE,
    eigen_crop: bool = False,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    watched: Watched = iter,
) -> Result:
    """A linear layer on patch tokens with the class token, before the final norm, of the last block or of the published four.

    `unit` is what a depth of 1 metre is in the files.

    Raises:
        DatasetError: a depth map can't be used.
        ImageError: an image can't be read.
        ValueError: a setting that doesn't fit, such as neither 1 nor 4 blocks.
    """
    if blocks not in (1, 4):
        raise ValueError(f"{blocks} blocks: depth is read from 1 or 4.")
    started, total = time.perf_counter(), pre.config.depth
    chosen = (total - 1,) if blocks == 1 else DEPTH_BLOCKS.get(total, tuple(range(max(total - 4, 0), total)))
    tokens = [
        DenseTokens(pre, part.images, size, blocks=chosen, with_cls=True, norm=False, cache_bytes=cache_bytes)
        for part in (train, test)
    ]
    maps = [lambda i, part=part: read_depth(part.targets[i], unit) for part in (train, test)]
    head = depth.fit_depth(
        tokens[0], maps[0], len(tokens[0]), tokens[0].grid, tokens[0].width, (tokens[0].size, tokens[0].size),
        reach=reach, steps=steps, batch_size=batch_size, rate=rate, seed=seed, device=pre.device, watched=watched,
    )  # fmt: skip
    fitted = time.perf_counter()
    score = depth.judge_depth(
        lambda i: depth.depth_of_scores(head(tokens[1]([i]), tokens[1].grid), reach)[0], maps[1], len(tokens[1]),
        reach=reach, eigen_crop=eigen_crop, watched=watched,
    )  # fmt: skip
    settings = {
        "size": tokens[0].size, "blocks": list(chosen), "unit": unit, "nearest": reach.nearest, "farthest": reach.farthest,
        "steps": steps, "batch_size": batch_size, "rate": rate, "eigen_crop": eigen_crop, "seed": seed,
    }  # fmt: skip
    return Result(
        task="depth",
        data={"train": len(train.images), "test": score.images, "source": _source(test)},
        model=_dense_identity(pre, tokens[0].size),
        settings=settings,
        metrics=score.to_dict(),
        seconds={"fit": fitted - started, "evaluation": time.perf_counter() - fitted},
    )


def video_result(
    pre: Pretrained,
    videos: Sequence[Sequence2017],
    *,
    short_side: int = video.SHORT_SIDE,
    watched: Watched = iter,
    **settings: Any,
) -> Result:
    """J and F over all objects of all videos; `settings` are those of `video.propagate_masks`.

    Raises:
        DatasetError: no videos, or a mask can't be used.
        ValueError: a video of fewer than three frames, or a setting out of its range.
    """
    if not videos:
        raise DatasetError("there is no video to judge.")
    started = time.perf_counter()
    scores: dict[str, VideoScore] = {}
    for found in watched(videos):
        truth = torch.stack([read_mask(path) for path in found.masks])
        objects = int(truth[0][truth[0] != IGNORED].max()) if (truth[0] != IGNORED).any() else 0
        if not objects:
            raise DatasetError(
                f"{found.name}: the first mask shows no object; masks hold 0 for background and 1, 2, ... for objects."
            )
        size = video.frame_size(truth.shape[1], truth.shape[2], pre.config.patch_size, short_side)
        frames = video.read_frames(pre, found.frames, size)
        masks = video.propagate_masks(frames, truth[0], pre.model.grid_of(*size), pre.config.patch_size, **settings)
        scores[found.name] = judge_video(masks, truth.numpy(), objects)
    region = float(np.mean([x for score in scores.values() for x in score.region]))
    contour = float(np.mean([x for score in scores.values() for x in score.contour]))
    return Result(
        task="video",
        data={
            "source": str(videos[0].frames[0]),
            "videos": len(scores),
            "objects": sum(len(s.region) for s in scores.values()),
        },
        model=identity_of(pre, "patches"),
        settings={"short_side": short_side, **settings},
        metrics={"J&F": (region + contour) / 2, "J": region, "F": contour},
        seconds={"evaluation": time.perf_counter() - started},
        details={name: {"J": list(score.region), "F": list(score.contour)} for name, score in scores.items()},
    )


def matching_result(
    pre: Pretrained,
    pairs: Sequence[matching.KeypointPair],
    *,
    size: int = 518,
    alphas: Sequence[float] = matching.ALPHAS,
    watched: Watched = iter,
) -> Result:
    """PCK of points carried to the patch with the nearest token; images are squashed to a square, points with them.

    Raises:
        DatasetError: no pairs, or an image can't be read.
        ValueError: an alpha that is not above 0.
    """
    if not pairs:
        raise DatasetError("there is no pair of images to judge.")
    started, edge = time.perf_counter(), whole_patches(size, pre.config.patch_size)
    grid, predicted = pre.model.grid_of(edge, edge), []
    for pair in watched(pairs):
        failed: list[tuple[str, str]] = []
        both = list(batches(squashed(pre, (edge, edge)), [pair.source, pair.target], 2, 2, failed))
        if failed:
            raise DatasetError(f"{failed[0][0]} can't be used: {failed[0][1]}")
        patches = read_tokens(pre, both[0].pixels)[0].patches.float().cpu()
        sizes = (_size_of(pair.source), _size_of(pair.target))
        predicted.append(matching.transfer_points(patches[0], patches[1], pair.source_points, (grid, grid), sizes))
    score = matching.judge_points(predicted, pairs, alphas)
    metrics = {f"PCK@{alpha:g}": value for alpha, value in score.per_pair.items()}
    metrics |= {f"PCK@{alpha:g}, of all points": value for alpha, value in score.per_point.items()}
    return Result(
        task="matching",
        data={"source": pairs[0].source, "pairs": score.pairs, "points": score.points},
        model=_dense_identity(pre, edge),
        settings={"size": edge, "alphas": list(alphas)},
        metrics=metrics,
        seconds={"evaluation": time.perf_counter() - started},
    )


class _Masks:
    """Masks by number; read each time, as they are small beside the tokens."""

    def __init__(self, data: Paired, zero_is_other: bool) -> None:
        self._paths, self._zero_is_other = data.targets, zero_is_other

    def __call__(self, number: int) -> Int64[Tensor, "h w"]:
        return read_mask(self._paths[number], zero_is_other=self._zero_is_other)

    def count(self) -> int:
        """Classes: one more than the largest label."""
        largest = -1
        for number in range(len(self._paths)):
            mask = self(number)
            largest = max(largest, int(mask.masked_fill(mask == IGNORED, -1).max()))
        if largest < 1:
            raise DatasetError(
                "the train masks hold fewer than two classes; say how many there are, or look at the files."
            )
        return largest + 1


def _segmented(
    task: str,
    pre: Pretrained,
    data: tuple[Paired, Paired],
    settings: dict[str, Any],
    score: Segmentation,
    seconds: dict[str, float],
) -> Result:
    train, test = data
    return Result(
        task=task,
        data={"train": len(train.images), "test": len(test.images), "source": _source(test)},
        model=_dense_identity(pre, settings["size"]),
        settings=settings,
        metrics={
            "mIoU": score.mean_iou,
            "pixel accuracy": score.pixel_accuracy,
            "mean class accuracy": score.mean_class_accuracy,
        },
        seconds=seconds,
        details={"iou": score.iou.tolist()},
    )


def _dense_identity(pre: Pretrained, size: int) -> dict[str, Any]:
    return identity_of(replace(pre, transform=squashed(pre, (size, size))), "patches")


def _source(data: Paired) -> str:
    return commonpath(data.images) if data.images else ""


def _size_of(path: str) -> tuple[int, int]:
    """(Height, width) as decoding gives them: upright."""
    decoded = decode(path)
    return decoded.height, decoded.width
