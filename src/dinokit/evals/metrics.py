"""What evaluations count: accuracy, average precision, intersection over union, depth errors, RankMe.

Promise: each equals its definition on small inputs (tests hold brute force beside them); shares lie in [0, 1], not in percent.
Masks of videos are judged in `masks`, keypoints by `analysis.matching.pck`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from dinokit.analysis.rank import rankme as rankme  # a metric, too; training looks at it besides

IGNORED = 255
"""The label of pixels that do not count, in every data set of masks here."""
APRule = Literal["mean", "trapezoid"]
AP_RULES: tuple[APRule, ...] = get_args(APRule)
DELTA = 1.25


def topk_accuracy(
    scores: Float[Tensor, "m classes"], labels: Int64[Tensor, " m"], ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Share of rows whose label is among the `k` highest scores, for each k up to the number of classes.

    Raises:
        ValueError: no row, or k below 1.
    """
    if not len(labels) or min(ks) < 1:
        raise ValueError(f"accuracy of {len(labels)} rows at k = {list(ks)}: it needs a row, and k of at least 1.")
    kept = [k for k in ks if k <= scores.shape[1]]
    best = scores.topk(max(kept, default=1), dim=1).indices == labels.to(scores.device)[:, None]
    return {k: best[:, :k].any(dim=1).double().mean().item() for k in kept}


class Ranking(NamedTuple):
    """Per query: average precision, and precision at each k asked for; NaN for queries without anything to find."""

    average_precision: Float64[Tensor, " q"]
    precision_at: dict[int, Float64[Tensor, " q"]]

    @property
    def mean_average_precision(self) -> float:
        """Over the queries that have something to find; NaN without any."""
        return self.average_precision.nanmean().item()


def judge_ranking(
    relevant: Bool[Tensor, "q n"],
    junk: Bool[Tensor, "q n"] | None = None,
    *,
    rule: APRule = "mean",
    ks: Sequence[int] = (1, 5, 10),
) -> Ranking:
    """How good rankings are: `relevant` says of each place, best first, whether what stands there was to be found.

    What is `junk` is taken out as if it were not there. "mean" is the mean precision at the relevant places; "trapezoid" averages
    it with the precision just before each, as the Oxford and Paris benchmarks do. Precision at k looks no farther than the last
    relevant place.

    Raises:
        ValueError: an unknown rule, or shapes that differ.
    Source: Radenovic et al. 2018 (revisited Oxford and Paris), after Philbin et al. 2007.
    """
    if rule not in AP_RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(AP_RULES)}.")
    if junk is not None and junk.shape != relevant.shape:
        raise ValueError(f"relevant is {tuple(relevant.shape)}, junk {tuple(junk.shape)}; they must agree.")
    kept = torch.ones_like(relevant) if junk is None else ~junk
    found = relevant & kept
    place = kept.long().cumsum(dim=1).double()  # 1-based, junk not counted
    count = found.long().cumsum(dim=1).double()
    total = count[:, -1]
    precision = count / place.clamp_min(1)
    if rule == "trapezoid":
        before = torch.where(place > 1, (count - 1) / (place - 1).clamp_min(1), 1.0)
        precision = (precision + before) / 2
    nothing = torch.where(total > 0, 0.0, torch.nan)
    average = torch.where(found, precision, 0.0).sum(dim=1) / total.clamp_min(1) + nothing
    last = torch.where(found, place, 0.0).amax(dim=1)
    at = {}
    for k in ks:
        reach = last.clamp_max(k).clamp_min(1)
        at[k] = (found & (place <= reach[:, None])).sum(dim=1) / reach + nothing
    return Ranking(average, at)


def confusion(
    predicted: Shaped[Tensor, "..."], true: Shaped[Tensor, "..."], num_classes: int, ignored: int = IGNORED
) -> Int64[Tensor, "c c"]:
    """Pixels by true class (row) and predicted class (column); what is `ignored` in `true` does not count. Matrices of images add up.

    Raises:
        ValueError: shapes that differ, or a label outside of 0 to num_classes - 1.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"predicted labels are {tuple(predicted.shape)}, true ones {tuple(true.shape)}.")
    true, predicted = true.long(), predicted.long()
    kept = true != ignored
    true, predicted = true[kept], predicted[kept]
    for labels in (true, predicted):
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
            raise ValueError(
                f"labels lie in {int(labels.min())} to {int(labels.max())}; {num_classes} classes count from 0, and {ignored} is "
                f"ignored."
            )
    return torch.bincount(true * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Of a confusion matrix: per class intersection over union (NaN where it is in neither), its mean, and accuracies of pixels."""

    iou: Float64[Tensor, " c"]
    mean_iou: float
    pixel_accuracy: float
    mean_class_accuracy: float

    @classmethod
    def of(cls, matrix: Int64[Tensor, "c c"]) -> Segmentation:
        """Mean over the classes that occur, in the truth or in the prediction."""
        matrix = matrix.double()
        hits, true, predicted = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
        iou = hits / (true + predicted - hits)  # 0/0 is NaN: no such class anywhere
        return cls(
            iou=iou,
            mean_iou=iou.nanmean().item(),
            pixel_accuracy=(hits.sum() / matrix.sum()).item(),
            mean_class_accuracy=(hits / true).nanmean().item(),
        )


class DepthErrors(NamedTuple):
    """`rmse` in the unit of the depths; `abs_rel` relative to the truth; `delta1` to `delta3`: share within 1.25, 1.25^2, 1.25^3."""

    rmse: float
    abs_rel: float
    rmse_log: float
    delta1: float
    delta2: float
    delta3: float


def depth_errors(
    predicted: Float[Tensor, "..."], true: Float[Tensor, "..."], valid: Bool[Tensor, "..."] | None = None
) -> DepthErrors:
    """Errors of one depth map, over the pixels that are `valid` (by default, where the truth is above 0).

    Raises:
        ValueError: no valid pixel, or a depth that is not above 0.
    """
    valid = true > 0 if valid is None else valid
    p, t = predicted[valid].double(), true[valid].double()
    if not len(t) or not (bool((p > 0).all()) and bool((t > 0).all())):
        raise ValueError(f"{len(t)} valid pixels; depth errors need one, and depths above 0 (clamp the prediction).")
    ratio = torch.maximum(p / t, t / p)
    within = [(ratio < DELTA**power).double().mean().item() for power in (1, 2, 3)]
    return DepthErrors(
        (p - t).square().mean().sqrt().item(),
        ((p - t).abs() / t).mean().item(),
        (p.log() - t.log()).square().mean().sqrt().item(),
        *within,
    )


def align_depth(
    predicted: Float[Tensor, "..."], true: Float[Tensor, "..."], valid: Bool[Tensor, "..."] | None = None
) -> Float[Tensor, "..."]:
    """`scale * predicted + shift`, the two by least squares over the valid pixels: for depths known up to both.

    A constant prediction becomes the mean of the truth.
    """
    valid = true > 0 if valid is None else valid
    p, t = predicted[valid].double(), true[valid].double()
    spread = (p - p.mean()).square().sum()
    scale = ((p - p.mean()) * (t - t.mean())).sum() / spread if spread > 0 else spread
    return (scale * (predicted.double() - p.mean()) + t.mean()).to(predicted.dtype)
