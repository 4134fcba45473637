"""Depth from frozen tokens by a linear layer: 256 bins between the nearest and farthest depth, and their weighted mean.

Source: Oquab et al. 2023, section 7.4 (a linear layer to bins, after Bhat et al. 2021);
facebookresearch/dinov2, hub/depth (order of operations: bins by ReLU + 0.1); loss: Eigen et al. 2014, Eq. 4, its square root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinokit.evals.metrics import DepthErrors, align_depth, depth_errors
from dinokit.evals.segmentation import PatchHead, TokensOf, enlarge, fit_patch_head, resize_mask

NUM_BINS = 256
MIN_DEPTH, MAX_DEPTH = 0.001, 10.0
BIN_FLOOR = 0.1
UPSAMPLED = 4
MEAN_WEIGHT = 0.15
LEARNING_RATE, STEPS, BATCH_SIZE = 3e-4, 38_400, 16
NYU_SIZE, EIGEN_CROP = (480, 640), (slice(45, 471), slice(41, 601))

DepthOf = Callable[[int], Float[Tensor, "h w"]]
Watched = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True, kw_only=True)
class DepthScore:
    """Means over images of each image's errors; `aligned` after the best scale and shift of each."""

    errors: DepthErrors
    aligned: DepthErrors
    images: int

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON."""
        return {**self.errors._asdict(), **{f"aligned_{name}": x for name, x in self.aligned._asdict().items()}}


@dataclass(frozen=True)
class DepthRange:
    """Depths in metres: bins go from `nearest` to `farthest`, pixels outside of them are not judged."""

    nearest: float = MIN_DEPTH
    farthest: float = MAX_DEPTH

    def __post_init__(self) -> None:
        if not 0 < self.nearest < self.farthest:
            raise ValueError(f"depths {asdict(self)}: the nearest must be above 0 and below the farthest.")


INDOORS = DepthRange()


def depth_of_scores(scores: Float[Tensor, "b bins gh gw"], reach: DepthRange) -> Float[Tensor, "b h w"]:
    """Mean of the bins' depths, weighted by ReLU + 0.1 of their scores, at four times the grid's resolution."""
    weights = enlarge(scores, (UPSAMPLED * scores.shape[2], UPSAMPLED * scores.shape[3])).relu() + BIN_FLOOR
    bins = torch.linspace(reach.nearest, reach.farthest, scores.shape[1], device=scores.device)
    return torch.einsum("bnhw,n->bhw", weights / weights.sum(dim=1, keepdim=True), bins)


def scale_invariant_loss(
    predicted: Float[Tensor, "..."], true: Float[Tensor, "..."], valid: Bool[Tensor, "..."]
) -> Tensor:
    """Root of the variance of log ratios plus 0.15 times their squared mean: an error of scale weighs less than one of shape."""
    ratio = (predicted.clamp_min(1e-6).log() - true.clamp_min(1e-6).log())[valid]
    if not len(ratio):
        return predicted.sum() * 0.0
    return (ratio.var(correction=0) + MEAN_WEIGHT * ratio.mean().square() + 1e-12).sqrt()


def fit_depth(
    tokens: TokensOf,
    depths: DepthOf,
    num: int,
    grid: tuple[int, int],
    width: int,
    size: tuple[int, int],
    *,
    reach: DepthRange = INDOORS,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    rate: float = LEARNING_RATE,
    seed: int = 0,
    device: torch.device | str = "cpu",
    watched: Watched = iter,
) -> PatchHead:
    """A linear layer to 256 bins, trained at depth maps of `size` (height, width). The same seed gives the same head.

    Tokens are standardised by their statistics, without further parameters, as scales of networks differ; this folds into the layer.

    Raises:
        ValueError: no image.
    """
    if num < 1:
        raise ValueError("there is no image to fit depth on.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PatchHead(width, NUM_BINS, affine=False).to(device)

    def loss(head: PatchHead, numbers: Sequence[int]) -> Tensor:
        truth = torch.stack([resize_mask(depths(i), size) for i in numbers]).to(device)
        found = enlarge(depth_of_scores(head(tokens(numbers).to(device), grid), reach)[:, None], size)[:, 0]
        return scale_invariant_loss(found, truth, _within(truth, reach))

    return fit_patch_head(head, loss, num, steps=steps, batch_size=batch_size, rate=rate, seed=seed, watched=watched)


@torch.no_grad()
def judge_depth(
    predict: Callable[[int], Float[Tensor, "gh gw"]],
    depths: DepthOf,
    num: int,
    *,
    reach: DepthRange = INDOORS,
    eigen_crop: bool = False,
    watched: Watched = iter,
) -> DepthScore:
    """Depth of each image, enlarged to its true map's size and clamped to the range, against it where that is known.

    `eigen_crop` judges the part of 480 x 640 maps that NYU's papers do. Images without a judged pixel are passed over.

    Raises:
        ValueError: no image has a judged pixel, or a map of another size with `eigen_crop`.
    """
    errors, aligned = [], []
    for number in watched(range(num)):
        truth = depths(number)
        found = enlarge(predict(number)[None, None].cpu(), (truth.shape[0], truth.shape[1]))[0, 0]
        valid = _within(truth, reach)
        if eigen_crop:
            valid &= _eigen_mask(truth)
        if not valid.any():
            continue
        found = found.clamp(reach.nearest, reach.farthest)
        errors.append(depth_errors(found, truth, valid))
        aligned.append(
            depth_errors(align_depth(found, truth, valid).clamp(reach.nearest, reach.farthest), truth, valid)
        )
    if not errors:
        raise ValueError(f"none of {num} images has a pixel with a depth in {reach.nearest:g} to {reach.farthest:g}.")
    return DepthScore(errors=_mean(errors), aligned=_mean(aligned), images=len(errors))


def _within(truth: Tensor, reach: DepthRange) -> Tensor:
    return (truth >= reach.nearest) & (truth <= reach.farthest)


def _eigen_mask(truth: Tensor) -> Tensor:
    if tuple(truth.shape) != NYU_SIZE:
        raise ValueError(f"the Eigen crop is one of 480 x 640 maps; this one is {truth.shape[0]} x {truth.shape[1]}.")
    mask = torch.zeros(NYU_SIZE, dtype=torch.bool)
    mask[EIGEN_CROP] = True
    return mask


def _mean(rows: Sequence[DepthErrors]) -> DepthErrors:
    return DepthErrors(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
