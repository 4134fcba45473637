"""How much tokens agree with each other, and how a graph of them falls apart: one affinity and one eigensolver for all methods.

Promise: nothing random; eigenvectors have one sign whoever computed them. Every method of object discovery and the spectral
segments are built on these two functions.
Source: Shi and Malik 2000 (normalised cuts), Eq. 6 and 7.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

Kind = Literal["cosine", "dot"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PEAK_TOLERANCE = 1e-9


def affinity(
    features: Float[Tensor, "n d"],
    *,
    kind: Kind = "cosine",
    bias: float = 0.0,
    relu: bool = False,
    threshold: float | None = None,
    eps: float = 1e-5,
    token_mask: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, "n n"]:
    """Pairwise affinity of tokens, symmetric, in float32 or better.

    In this order: dot products ("cosine": of unit vectors, in [-1, 1]; a zero vector agrees with nothing), plus `bias`,
    negatives to 0 with `relu`, then with `threshold` 1 above it and `eps` elsewhere. Rows and columns of tokens that
    `token_mask` leaves out (false) are 0.

    Raises:
        ValueError: an unknown kind, features that are not finite, or a mask of another length.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    if not torch.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values; compute them in float32, or leave the image out.")
    if kind == "cosine":
        features = F.normalize(features, dim=-1)
    weights = features @ features.T
    weights = (
        torch.maximum(weights, weights.T) + bias
    )  # a matrix product in blocks may differ from its transpose by a bit
    if relu:
        weights = weights.clamp_min(0.0)
    if threshold is not None:
        weights = torch.where(weights > threshold, 1.0, eps).to(weights.dtype)
    if token_mask is not None:
        kept = checked_mask(token_mask, features.shape[0]).to(weights.device)
        weights = weights * (kept[:, None] & kept[None, :])
    return weights


def checked_mask(token_mask: Bool[Tensor, " n"] | None, num_tokens: int) -> Bool[Tensor, " n"]:
    """`token_mask`, or one that keeps every token.

    Raises:
        ValueError: another length or type, or no token is kept.
    """
    if token_mask is None:
        return torch.ones(num_tokens, dtype=torch.bool)
    if token_mask.dtype != torch.bool or tuple(token_mask.shape) != (num_tokens,):
        raise ValueError(
            f"token_mask has shape {tuple(token_mask.shape)} and type {token_mask.dtype}; expected ({num_tokens},) of torch.bool, "
            f"true for the tokens that take part."
        )
    if not token_mask.any():
        raise ValueError("token_mask leaves no token; raise the threshold that made it.")
    return token_mask


class Eigen(NamedTuple):
    """Solutions of (D - W) y = lambda D y, ascending; y'Dy = 1; the first is the constant one with value 0."""

    values: Float64[Tensor, " k"]
    vectors: Float64[Tensor, "n k"]


def eigenvectors(weights: Float[Tensor, "n n"], num: int) -> Eigen:
    """The `num` smallest solutions of (D - W) y = lambda D y, D being the row sums of `weights`.

    Values lie in [0, 2]. Computed in float64 from the normalised Laplacian with the constant solution taken out, so that two
    parts without any link come out as y_1 too. The entry of largest magnitude is positive (the first of equals). Tokens without
    any link (row sum 0) take no part; they hold 0. Costs n^3 operations.

    Raises:
        ValueError: negative or non-finite weights, or fewer linked tokens than `num`.
    """
    if not torch.isfinite(weights).all() or bool((weights < 0).any()):
        raise ValueError("weights of the graph must be finite and at least 0; use relu=True or a threshold.")
    home = weights.device
    # Metal has no float64.
    weights = (weights.cpu() if home.type == "mps" else weights).double()
    linked = weights.sum(dim=1) > 0
    if num < 1 or int(linked.sum()) < num:
        raise ValueError(f"{num} eigenvectors of {int(linked.sum())} linked tokens; ask for 1 up to that number.")
    part = weights[linked][:, linked]
    degree = part.sum(dim=1)
    scale = degree.rsqrt()
    constant = degree.sqrt() / degree.sum().sqrt()
    laplacian = torch.eye(len(part), dtype=part.dtype, device=part.device) - scale[:, None] * part * scale[None, :]
    laplacian = (laplacian + laplacian.T) / 2 + 3.0 * constant[:, None] * constant[None, :]  # constant: last, not first
    values, found = torch.linalg.eigh(laplacian)
    found = scale[:, None] * found[:, : num - 1]
    vectors = torch.zeros(len(weights), num, dtype=weights.dtype, device=weights.device)
    vectors[linked, 0] = degree.sum().rsqrt()
    for column in range(num - 1):
        vector = found[:, column]
        vectors[linked, column + 1] = vector * torch.sign(vector[first_peak(vector.abs())])
    values = torch.cat([values.new_zeros(1), values[: num - 1].clamp_min(0.0)])
    return Eigen(values.to("cpu" if home.type == "mps" else home), vectors.to("cpu" if home.type == "mps" else home))


def first_peak(values: Float[Tensor, " n"]) -> int:
    """Index of the largest value; the first of those that differ from it by rounding only."""
    top = values.max()
    return int((values >= top - PEAK_TOLERANCE * top.abs()).nonzero()[0, 0])
