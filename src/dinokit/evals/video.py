"""Masks carried through a video from its first frame by nearest tokens, as DINO judges its features on DAVIS.

Source: Caron et al. 2021, section 4.2.2 and facebookresearch/dino, eval_video_segmentation.py: first frame and 7 before, 5 neighbours,
radius 12, temperature 0.1, each mask brought to 0..1 in its frame. J and F: `masks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor

from dinokit.analysis.matching import (
    DAVIS_CONTEXT,
    DAVIS_RADIUS,
    DAVIS_TEMPERATURE,
    DAVIS_TOP_K,
    Neighbourhood,
    propagate_labels,
)
from dinokit.evals.features import batches, read_tokens, squashed, whole_patches
from dinokit.evals.metrics import IGNORED
from dinokit.evals.segmentation import patch_labels
from dinokit.weights.load import Pretrained

SHORT_SIDE = 480


def frame_size(height: int, width: int, patch_size: int, short_side: int = SHORT_SIDE) -> tuple[int, int]:
    """(Height, width) of whole patches nearest to the frame's shape at this shorter side."""
    scale = short_side / min(height, width)
    return whole_patches(round(height * scale), patch_size), whole_patches(round(width * scale), patch_size)


def read_frames(
    pre: Pretrained, paths: Sequence[str], size: tuple[int, int], *, batch_size: int = 4, workers: int = 2
) -> Float[Tensor, "t n d"]:
    """Patch tokens of every frame at `size`, on the CPU: frames x patches x width x 4 bytes.

    Raises:
        ValueError: a frame can't be read.
    """
    failed: list[tuple[str, str]] = []
    found = [
        read_tokens(pre, batch.pixels)[0].patches.float().cpu()
        for batch in batches(squashed(pre, size), paths, batch_size, workers, failed)
    ]
    if failed:
        raise ValueError(f"a video needs all its frames; {failed[0][0]} can't be read: {failed[0][1]}")
    return torch.cat(found)


def propagate_masks(
    frames: Float[Tensor, "t n d"],
    first: Int64[Tensor, "h w"],
    grid: tuple[int, int],
    patch_size: int,
    *,
    context: int = DAVIS_CONTEXT,
    radius: int | None = DAVIS_RADIUS,
    top_k: int = DAVIS_TOP_K,
    temperature: float = DAVIS_TEMPERATURE,
    neighbourhood: Neighbourhood = "square",
) -> Int[np.ndarray, "t h w"]:
    """The mask of each frame in the first one's pixels (0 is background; what it ignores becomes that); the first as it was given.

    Raises:
        ValueError: sizes that don't fit, or a setting out of its range.
    """
    first = torch.where(first == IGNORED, 0, first)
    num_classes = int(first.max()) + 1
    labels = propagate_labels(
        frames,
        patch_labels(first, grid, patch_size, num_classes),
        grid,
        context=context,
        radius=radius,
        top_k=top_k,
        temperature=temperature,
        neighbourhood=neighbourhood,
    )
    masks = [_mask(shares, grid, (first.shape[0], first.shape[1])) for shares in labels[1:]]
    return torch.stack([first, *masks]).numpy()


def _mask(shares: Float[Tensor, "n c"], grid: tuple[int, int], size: tuple[int, int]) -> Int64[Tensor, "h w"]:
    """Each class's map brought to 0..1, so that a small object is not lost to the background; then the largest."""
    maps = F.interpolate(shares.T.unflatten(1, grid)[None], size, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    scaled = torch.where(high > 0, (maps - low) / (high - low).clamp_min(1e-12), maps)
    return scaled.argmax(dim=0)
