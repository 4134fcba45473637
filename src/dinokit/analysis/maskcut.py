"""Objects by normalised cuts of the patch graph: TokenCut (one object) and MaskCut (several).

MaskCut is written anew from the paper's description; there is no CRF after it and no resize before it, so masks keep the
resolution of the patches.
Source: Wang, Shen et al. 2022 (TokenCut), section 3; Wang, Girdhar et al. 2023 (CutLER), section 3.1; Shi and Malik 2000.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dinokit.analysis.affinity import affinity, eigenvectors, first_peak
from dinokit.analysis.components import box_of, component_at
from dinokit.analysis.discovery import Found, checked_grid, lone_token

TOKENCUT_TAU = 0.2
MASKCUT_TAU = 0.2  # the published default; the paper's text has 0.15
EPS = 1e-5
# From the second round on a mask is dropped if it repeats an earlier one or is hardly there.
MAX_IOU = 0.5
MIN_AREA = 0.01
MIN_CORNERS = 3


class Cut(NamedTuple):
    """The best normalised cut in two: its eigenvalue, its eigenvector, and who lies above the mean of it."""

    value: float
    vector: Float64[Tensor, " n"]
    above: Bool[Tensor, " n"]


def normalized_cut(
    features: Float[Tensor, "n d"], tau: float, eps: float, token_mask: Bool[Tensor, " n"] | None = None
) -> Cut:
    """Cut of the graph whose links are 1 where cosines exceed `tau` and `eps` elsewhere.

    Raises:
        ValueError: `eps` is not positive, or fewer than two tokens are left.
    """
    if eps <= 0:
        raise ValueError(f"eps is {eps}; the graph must hang together: eps > 0.")
    values, vectors = eigenvectors(affinity(features, threshold=tau, eps=eps, token_mask=token_mask), 2)
    vector = vectors[:, 1].cpu()
    kept = torch.ones_like(vector, dtype=torch.bool) if token_mask is None else token_mask.cpu()
    return Cut(float(values[1]), vector, (vector > vector[kept].mean()) & kept)


def tokencut(
    features: Float[Tensor, "n d"],
    hw: tuple[int, int],
    tau: float = TOKENCUT_TAU,
    eps: float = EPS,
    token_mask: Bool[Tensor, " n"] | None = None,
) -> Found:
    """The object of one image by TokenCut: the side of the cut that holds the most extreme token, its connected part.

    `features` are usually keys of the last block. The map "eigenvector" is positive towards the object.

    Raises:
        ValueError: sizes that don't fit, features not finite, or no token left.
    """
    kept = checked_grid(features, hw, token_mask).cpu()
    if (lone := lone_token(kept, hw)) is not None:
        return lone
    cut = normalized_cut(features, tau, eps, token_mask)
    seed = first_peak(cut.vector.abs())
    vector, inside = (cut.vector, cut.above) if cut.above[seed] else (-cut.vector, ~cut.above & kept)
    mask = component_at(inside.view(hw), seed)
    return Found(
        boxes=(box_of(mask),),
        seeds=(seed,),
        masks=mask[None],
        maps={"eigenvector": vector.view(hw)},
        eigenvalues=(cut.value,),
    )


def maskcut(
    features: Float[Tensor, "n d"],
    hw: tuple[int, int],
    rounds: int = 3,
    tau: float = MASKCUT_TAU,
    eps: float = EPS,
    token_mask: Bool[Tensor, " n"] | None = None,
) -> Found:
    """Up to `rounds` objects of one image by MaskCut, in the order in which they were cut out.

    Each round cuts the graph in two; the object is the side with the most extreme token, but the other one if three or more
    corners of the image lie on it. Then the features under it are set to zero. From the second round on, a mask that overlaps
    an earlier one by an IoU above 0.5 or covers at most 1 % of the image is dropped. Maps are "eigenvector 1", ...

    Raises:
        ValueError: sizes that don't fit, no rounds, features not finite, or no token left.
    """
    kept = checked_grid(features, hw, token_mask).cpu()
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; ask for at least 1.")
    if (lone := lone_token(kept, hw)) is not None:
        return lone
    masks: list[Tensor] = []
    seeds, values, maps = [], [], {}
    left = features.clone()
    for number in range(rounds):
        if not left[kept.to(left.device)].any():
            break
        cut = normalized_cut(left, tau, eps, token_mask)
        vector, inside = _object_side(cut, kept, hw)
        seed = first_peak(torch.where(inside, vector, -torch.inf))
        mask = component_at(inside.view(hw), seed)
        left[mask.flatten().to(left.device)] = 0.0
        if number and (mask.float().mean() <= MIN_AREA or any(_iou(mask, other) > MAX_IOU for other in masks)):
            continue
        masks.append(mask)
        seeds.append(seed)
        values.append(cut.value)
        maps[f"eigenvector {len(masks)}"] = vector.view(hw)
    return Found(
        boxes=tuple(box_of(mask) for mask in masks),
        seeds=tuple(seeds),
        masks=torch.stack(masks),
        maps=maps,
        eigenvalues=tuple(values),
    )


def _object_side(cut: Cut, kept: Tensor, hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The eigenvector turned towards the object, and the side of the object."""
    corners = cut.above.view(hw)[[0, 0, -1, -1], [0, -1, 0, -1]]
    turned = int(corners.sum()) >= MIN_CORNERS or not cut.above[first_peak(cut.vector.abs())]
    other = ~cut.above & kept
    return (-cut.vector, other) if turned and other.any() else (cut.vector, cut.above)


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())
