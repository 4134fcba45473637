"""Losses of fine-tuning: soft labels, pixels with an ignored label, depth in logarithms and its gradients.

Source: facebookresearch/dinov2, eval/depth/models/losses/{sigloss,gradientloss}.py; Eigen et al. 2014, Eq. 4 (scale-invariant loss);
Li and Snavely 2018, section 4.1 (multi-scale gradients).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

IGNORED = 255
EPS = 1e-3
MEAN_WEIGHT = 0.15
SIG_WARM_UP = 100
STRIDES = (1, 2, 4, 6)
APART = 2


def pixel_cross_entropy(scores: Float[Tensor, "b c h w"], labels: Int64[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Mean over the pixels that are not ignored (255); 0, with a gradient of 0, where all are."""
    kept = (labels != IGNORED).sum().clamp_min(1)
    return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum") / kept


def sig_loss(
    predicted: Float[Tensor, "..."], true: Float[Tensor, "..."], valid: Bool[Tensor, "..."], *, warming: bool = False
) -> Float[Tensor, ""]:
    """sqrt(var(g) + 0.15 mean(g)^2) for g = ln(p + 0.001) - ln(t + 0.001) over the valid pixels; the variance is the unbiased one.

    `warming` leaves the variance out, as the released recipe does for its first 100 steps: the scale is found first. 0 without two
    valid pixels.
    """
    g = (predicted + EPS).log()[valid] - (true[valid] + EPS).log()
    if len(g) < 2:
        return predicted.sum() * 0.0
    squared = MEAN_WEIGHT * g.mean().square() + (0.0 if warming else g.var())
    return (squared + 1e-12).sqrt()  # the root has no slope at 0


def gradient_loss(
    predicted: Float[Tensor, "b h w"], true: Float[Tensor, "b h w"], valid: Bool[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Absolute differences, between places two apart, of g = ln(p + 0.001) - ln(t + 0.001), where both are valid.

    Summed along rows and columns, divided by the valid pixels, and summed over maps of every 1st, 2nd, 4th and 6th row and column. The
    released code takes these steps along the first two axes of its tensors, which for batches of four axes are images and channels;
    rows and columns are meant, and are taken here.
    """
    total = predicted.sum() * 0.0
    for stride in STRIDES:
        p, t, v = (x[:, ::stride, ::stride] for x in (predicted, true, valid))
        g = torch.where(v, (p + EPS).log() - (torch.where(v, t, 1.0) + EPS).log(), 0.0)
        count = v.sum().clamp_min(1)
        down = (g[:, APART:] - g[:, :-APART]).abs() * (v[:, APART:] & v[:, :-APART])
        across = (g[:, :, APART:] - g[:, :, :-APART]).abs() * (v[:, :, APART:] & v[:, :, :-APART])
        total = total + (down.sum() + across.sum()) / count
    return total


def mixed_cross_entropy(
    logits: Float[Tensor, "b c"],
    labels: Int64[Tensor, " b"],
    others: Int64[Tensor, " b"],
    share: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy to `labels` and to `others`, weighted by `share` and 1 - `share`."""
    own = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if share == 1.0:
        return own
    return share * own + (1 - share) * F.cross_entropy(logits, others, label_smoothing=label_smoothing)
