"""Deep spectral methods: the object, and all regions, from eigenvectors of the patch graph.

The affinity is that of the features alone; the colour term of the paper (weight 0 by default there) is left out, and so is the CRF.
Source: Melas-Kyriazi et al. 2022 (Deep Spectral Methods), sections 3.2 to 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dinokit.analysis.affinity import Eigen, affinity, eigenvectors, first_peak
from dinokit.analysis.components import box_of, largest_component
from dinokit.analysis.discovery import Found, checked_grid, lone_token
from dinokit.analysis.segments import LEFT_OUT, kmeans

NUM_EIGENVECTORS = 15


def spectral_vectors(features: Float[Tensor, "n d"], num: int, token_mask: Bool[Tensor, " n"] | None = None) -> Eigen:
    """The `num` smoothest vectors on the graph of positive cosines; the first is constant.

    Raises:
        ValueError: features not finite, or fewer tokens than `num`.
    """
    return eigenvectors(affinity(features, relu=True, token_mask=token_mask), num)


def deep_spectral(
    features: Float[Tensor, "n d"],
    hw: tuple[int, int],
    token_mask: Bool[Tensor, " n"] | None = None,
    num_eigenvectors: int = 4,
) -> Found:
    """The object of one image: where the first non-constant eigenvector is positive, its largest connected part.

    The sign is the one with at most half of the tokens positive. Maps are "eigenvector 1", ..., as many as there are, up to
    `num_eigenvectors`.

    Raises:
        ValueError: sizes that don't fit, features not finite or all zero, or no token left.
    """
    kept = checked_grid(features, hw, token_mask).cpu()
    if num_eigenvectors < 1:
        raise ValueError(f"num_eigenvectors is {num_eigenvectors}; ask for at least 1.")
    if (lone := lone_token(kept, hw)) is not None:
        return lone
    values, vectors = spectral_vectors(features, min(1 + num_eigenvectors, int(kept.sum())), token_mask)
    vectors = vectors.cpu()
    first = vectors[:, 1]
    first = -first if int((first > 0).sum()) * 2 > int(kept.sum()) else first
    mask = largest_component((first > 0).view(hw))
    seed = first_peak(torch.where(mask.flatten(), first, -torch.inf))
    maps = {"eigenvector 1": first.view(hw)}
    maps |= {f"eigenvector {i}": vectors[:, i].view(hw) for i in range(2, vectors.shape[1])}
    return Found(
        boxes=(box_of(mask),), seeds=(seed,), masks=mask[None], maps=maps, eigenvalues=tuple(values[1:].tolist())
    )


@dataclass(frozen=True, kw_only=True)
class Regions:
    """A partition of the patches: `labels` in 0 to num - 1 by falling size, -1 for tokens left out.

    `background` is the label that holds most cells of the border. `eigenvalues` are those that `num` was read from.
    """

    labels: Int64[Tensor, "gh gw"]
    num: int
    background: int
    eigenvalues: Float64[Tensor, " k"]


def eigen_segments(
    features: Float[Tensor, "n d"],
    hw: tuple[int, int],
    num: int | None = None,
    *,
    max_num: int = NUM_EIGENVECTORS,
    token_mask: Bool[Tensor, " n"] | None = None,
    seed: int = 0,
) -> Regions:
    """Regions of one image: k-means on the first `num` eigenvectors; without `num`, where their values jump most (see `eigengap`).

    Raises:
        ValueError: sizes that don't fit, `num` below 2 or above the number of tokens, or fewer than three tokens to choose from.
    """
    kept = checked_grid(features, hw, token_mask).cpu()
    if num is not None and not 2 <= num <= int(kept.sum()):
        raise ValueError(f"num is {num} for {int(kept.sum())} tokens; it must lie in 2 to that number.")
    count = num if num is not None else min(max_num + 1, int(kept.sum()))
    values, vectors = spectral_vectors(features, count, token_mask)
    chosen = num if num is not None else eigengap(values)
    labels = torch.full(kept.shape, LEFT_OUT, dtype=torch.int64)
    found = kmeans(vectors.cpu()[kept, 1:chosen], chosen, seed=seed)
    labels[kept] = found.labels
    grid = labels.view(hw)
    return Regions(labels=grid, num=len(found.centres), background=background_label(grid), eigenvalues=values.cpu())


def eigengap(values: Float64[Tensor, " k"]) -> int:
    """Number of groups after which ascending eigenvalues jump most; at least 2 (the first of equals).

    Raises:
        ValueError: fewer than three values.
    """
    if len(values) < 3:
        raise ValueError(f"{len(values)} eigenvalues show no jump between two groups and more; give at least 3.")
    gaps = values[2:] - values[1:-1]
    return 2 + first_peak(gaps)


def background_label(labels: Int64[Tensor, "gh gw"]) -> int:
    """The label most frequent along the border, each cell counted once; the smaller of equals."""
    border = torch.zeros_like(labels, dtype=torch.bool)
    border[[0, -1], :] = True
    border[:, [0, -1]] = True
    counts = torch.bincount(labels[border & (labels != LEFT_OUT)])
    return int(counts.argmax()) if len(counts) else 0
