"""Which patch of one image is which of another: nearest neighbours, best buddies, their scores; labels carried through a video.

Artefact tokens of different images resemble each other whatever the images show; leave them out with the masks.
Source: best buddies: Dekel et al. 2015, with deep tokens Amir et al. 2022; PCK: Yang and Ramanan 2013;
label propagation: Jabri et al. 2020, with DINO's settings (Caron et al. 2021, section 4.2.2).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dinokit.analysis.affinity import checked_mask

Neighbourhood = Literal["square", "circle"]
NEIGHBOURHOODS: tuple[Neighbourhood, ...] = get_args(Neighbourhood)
DAVIS_CONTEXT, DAVIS_RADIUS, DAVIS_TOP_K, DAVIS_TEMPERATURE = 7, 12, 5, 0.1


class Matches(NamedTuple):
    """Pairs of tokens: numbers in the first and in the second image, and their cosine."""

    first: Int64[Tensor, " p"]
    second: Int64[Tensor, " p"]
    similarity: Float[Tensor, " p"]


def nearest(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    mask_a: Bool[Tensor, " n"] | None = None,
    mask_b: Bool[Tensor, " m"] | None = None,
) -> Matches:
    """For every token of `a`, the token of `b` with the largest cosine. Masked tokens take no part.

    Raises:
        ValueError: a mask of another length or without any token.
    """
    similarity = _cosines(a, b, mask_a, mask_b)
    first = checked_mask(mask_a, len(a)).to(a.device).nonzero()[:, 0]
    best = similarity[first].max(dim=1)
    return Matches(first, best.indices, best.values)


def best_buddies(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    *,
    mask_a: Bool[Tensor, " n"] | None = None,
    mask_b: Bool[Tensor, " m"] | None = None,
) -> Matches:
    """Pairs that are each other's nearest by cosine, the best first (equals in the order of `a`). Masked tokens take no part.

    Raises:
        ValueError: a mask of another length or without any token.
    """
    similarity = _cosines(a, b, mask_a, mask_b)
    there, back = similarity.argmax(dim=1), similarity.argmax(dim=0)
    first = torch.arange(len(a), device=a.device)
    # A token left out has -inf everywhere, so that its argmax is a mere index.
    mutual = (back[there] == first) & torch.isfinite(similarity[first, there])
    pairs = Matches(first[mutual], there[mutual], similarity[first, there][mutual])
    order = torch.argsort(pairs.similarity, descending=True, stable=True)
    return Matches(*(part[order] for part in pairs))


def patch_centres(hw: tuple[int, int], patch_size: int) -> Float[Tensor, "n 2"]:
    """(Row, column) of the centre of each patch in pixels, edges being at whole numbers; patches row by row."""
    rows, columns = torch.meshgrid(torch.arange(hw[0]), torch.arange(hw[1]), indexing="ij")
    return (torch.stack([rows, columns], dim=-1).view(-1, 2).float() + 0.5) * patch_size


def end_point_error(predicted: Float[Tensor, "p axes"], true: Float[Tensor, "p axes"]) -> Float[Tensor, " p"]:
    """Distance of each predicted point from the true one, in their unit."""
    return torch.linalg.vector_norm(predicted - true, dim=-1)  # type: ignore[no-any-return]


def pck(
    predicted: Float[Tensor, "p 2"], true: Float[Tensor, "p 2"], size: float | tuple[float, float], alpha: float = 0.1
) -> float:
    """Percentage of correct keypoints at `alpha`: the share, in [0, 1], within alpha times the longer side of `size`.

    `size` is the height and width of the object's box or of the image, in the unit of the points, or the longer side itself.

    Raises:
        ValueError: no points, or alpha not positive.
    """
    if not len(true) or alpha <= 0:
        raise ValueError(f"PCK of {len(true)} points at alpha {alpha}; it needs points, and alpha > 0.")
    side = max(size) if isinstance(size, tuple) else size
    return float((end_point_error(predicted, true) <= alpha * side).float().mean())


def propagate_labels(
    frames: Float[Tensor, "t n d"],
    first_labels: Float[Tensor, "n c"],
    hw: tuple[int, int],
    *,
    context: int = DAVIS_CONTEXT,
    radius: int | None = DAVIS_RADIUS,
    top_k: int = DAVIS_TOP_K,
    temperature: float = DAVIS_TEMPERATURE,
    neighbourhood: Neighbourhood = "square",
) -> Float[Tensor, "t n c"]:
    """Labels of every frame, carried on from the first one's: the weighted mean of the labels of the `top_k` nearest tokens.

    They are sought in the first frame and the last `context` ones, within `radius` patches (None: anywhere); weights are
    exp(cosine / temperature). `first_labels` holds a share a class (one-hot for a hard mask); `argmax(-1)` of the result is
    the mask. Memory grows with n^2, not with the number of frames.

    Raises:
        ValueError: sizes that don't fit, or a setting out of its range.
    """
    _check_video(frames, first_labels, hw)
    if top_k < 1 or context < 0 or temperature <= 0 or (radius is not None and radius < 0):
        raise ValueError(
            f"top_k {top_k}, context {context}, temperature {temperature}, radius {radius}: top_k is at least 1, "
            f"temperature above 0, the others at least 0."
        )
    units = _units(frames)
    near = None if radius is None else neighbours(hw, radius, neighbourhood).to(units.device)
    labels = [first_labels.to(units.dtype)]
    for t in range(1, len(units)):
        sources = [0, *range(max(1, t - context), t)]
        found = [_strongest(units[t], units[s], near, top_k) for s in sources]
        cosines = torch.cat([cosine for cosine, _ in found], dim=1)  # n, sources * top_k
        votes = torch.cat([labels[s][index] for s, (_, index) in zip(sources, found, strict=True)], dim=1)
        best = cosines.topk(min(top_k, cosines.shape[1]), dim=1)
        weights = ((best.values - best.values[:, :1]) / temperature).exp()
        chosen = votes.gather(1, best.indices[..., None].expand(-1, -1, votes.shape[-1]))
        labels.append((weights[..., None] * chosen).sum(dim=1) / weights.sum(dim=1, keepdim=True))
    return torch.stack(labels)


def neighbours(hw: tuple[int, int], radius: int, shape: Neighbourhood = "square") -> Bool[Tensor, "n n"]:
    """Which patches lie within `radius` of each other: in a square window (DINO), or in a circle (DINOv3).

    Raises:
        ValueError: an unknown shape.
    """
    if shape not in NEIGHBOURHOODS:
        raise ValueError(f"neighbourhood is {shape!r}; it must be one of {', '.join(NEIGHBOURHOODS)}.")
    centres = patch_centres(hw, 1)
    away = (centres[:, None] - centres[None]).abs()
    return away.amax(dim=-1) <= radius if shape == "square" else away.square().sum(dim=-1) <= radius * radius


def _strongest(query: Tensor, keys: Tensor, near: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """Cosines and numbers of the `top_k` best keys of each query; -inf where the neighbourhood holds fewer."""
    cosines = query @ keys.T
    if near is not None:
        cosines = cosines.masked_fill(~near, -torch.inf)
    best = cosines.topk(min(top_k, cosines.shape[1]), dim=1)
    return best.values, best.indices


def _cosines(a: Tensor, b: Tensor, mask_a: Tensor | None, mask_b: Tensor | None) -> Tensor:
    """(n, m); -inf for tokens left out."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"tokens have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (n, width) and (m, width)."
        )
    kept_a, kept_b = checked_mask(mask_a, len(a)).to(a.device), checked_mask(mask_b, len(b)).to(b.device)
    similarity = _units(a) @ _units(b).T
    return similarity.masked_fill(~(kept_a[:, None] & kept_b[None, :]), -torch.inf)


def _units(tokens: Tensor) -> Tensor:
    """Of length 1, in float32 or better."""
    return F.normalize(tokens.float() if tokens.dtype in (torch.float16, torch.bfloat16) else tokens, dim=-1)


def _check_video(frames: Tensor, first_labels: Tensor, hw: tuple[int, int]) -> None:
    n = hw[0] * hw[1]
    if frames.ndim != 3 or not len(frames) or frames.shape[1] != n or first_labels.ndim != 2 or len(first_labels) != n:
        raise ValueError(
            f"frames have shape {tuple(frames.shape)} and first_labels {tuple(first_labels.shape)}; a grid of {hw[0]} x {hw[1]} "
            f"patches needs (frames, {n}, width) and ({n}, classes)."
        )
