"""Norms of tokens by their kind, their distribution over many images in bounded memory, and a check of where they were measured.

Measure before the final layer norm: after it all norms are nearly alike and the artefacts, though still there, can't be seen.
Source: Darcet et al. 2024, section 2.1 and Figs. 3, 4 and 15.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NORMED_TOLERANCE = 0.01  # bfloat16 keeps norms to about 0.4 %

# Bins of `NormHistogram`: 64 an octave are 1.1 % wide, from 2^-10 on, which no token's norm of a trained network is below.
PER_OCTAVE, OCTAVES, LOWEST = 64, 30, 2.0**-10


class NormedTokensWarning(UserWarning):
    """Norms were asked of tokens that look as if they came after a layer norm."""


class TokenNorms(NamedTuple):
    """Euclidean norms of a sequence's tokens, by their kind; float32 or better, whatever the tokens are."""

    cls: Float[Tensor, " b"]
    registers: Float[Tensor, "b r"]
    patches: Float[Tensor, "b n"]


def token_norms(sequence: Float[Tensor, "b t d"], num_registers: int = 0) -> TokenNorms:
    """Norms of the class token, the registers and the patches, which follow each other in this order.

    Raises:
        ValueError: the sequence has no patch after its class token and registers.
    """
    if sequence.shape[1] < num_registers + 2:
        raise ValueError(
            f"a sequence of {sequence.shape[1]} tokens holds no patch beside a class token and {num_registers} registers."
        )
    norms = norms_of(sequence)
    return TokenNorms(norms[:, 0], norms[:, 1 : 1 + num_registers], norms[:, 1 + num_registers :])


def norms_of(tokens: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
    """Euclidean norms over the last axis, computed in float32 at least: a norm of 300 overflows nothing but rounds in 16 bits."""
    norms: Tensor = torch.linalg.vector_norm(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
    return norms


def looks_normed(
    tokens: Float[Tensor, "*b d"], weight: Float[Tensor, " d"] | None = None, bias: Float[Tensor, " d"] | None = None
) -> bool:
    """Whether all tokens have mean 0 and norm sqrt(d), as they leave a layer norm.

    Trained norms scale and shift afterwards; with their `weight` and `bias` this is undone first. Without them, only an untrained norm
    is recognised.
    """
    x = tokens.detach().to(torch.promote_types(tokens.dtype, torch.float32))
    if bias is not None:
        x = x - bias.to(x)
    if weight is not None:
        x = x / weight.to(x)
    width = x.shape[-1]
    even = (x.norm(dim=-1) / math.sqrt(width) - 1).abs() <= NORMED_TOLERANCE
    centred = x.mean(dim=-1).abs() <= NORMED_TOLERANCE
    return x.numel() > 0 and bool((even & centred).all())


def warn_if_normed(
    tokens: Float[Tensor, "*b d"], weight: Float[Tensor, " d"] | None = None, bias: Float[Tensor, " d"] | None = None
) -> bool:
    """`looks_normed`, with a `NormedTokensWarning` if so."""
    normed = looks_normed(tokens, weight, bias)
    if normed:
        warnings.warn(
            f"all norms are sqrt({tokens.shape[-1]}) = {math.sqrt(tokens.shape[-1]):.2f}: these tokens seem to follow a layer norm, "
            f"where no outlier can be seen. Take them before the final norm (capture(model, images, residual=...)).",
            NormedTokensWarning,
            stacklevel=3,
        )
    return normed


def position_frequency(masks: Iterable[Bool[Tensor, "b n"]], grid: tuple[int, int]) -> Float64[Tensor, "gh gw"]:
    """Share of images in which each place of the grid is marked, in [0, 1].

    Raises:
        ValueError: masks of another grid, or none.
    Source: Darcet et al. 2024, appendix A, Fig. 10.
    """
    total, images = torch.zeros(grid[0] * grid[1], dtype=torch.float64), 0
    for mask in masks:
        if mask.shape[1] != total.shape[0]:
            raise ValueError(
                f"a mask is of {mask.shape[1]} patches and the grid {grid} has {total.shape[0]}; one grid a map."
            )
        total += mask.sum(dim=0).double().cpu()
        images += mask.shape[0]
    if not images:
        raise ValueError("there is no image to count in.")
    return (total / images).view(grid)


class NormHistogram:
    """Distribution of any number of norms in constant memory: counts in bins 1.1 % wide, minimum and maximum exact.

    Norms that are not finite are counted apart, in `num_nonfinite`.
    """

    def __init__(self) -> None:
        self.counts: Int64[Tensor, " bins"] = torch.zeros(PER_OCTAVE * OCTAVES, dtype=torch.int64)
        self.minimum, self.maximum = math.inf, -math.inf
        self.num_nonfinite = 0

    def add(self, norms: Float[Tensor, "..."]) -> None:
        """Count these too."""
        values = norms.detach().double().flatten().cpu()
        finite = values[values.isfinite()]
        self.num_nonfinite += values.numel() - finite.numel()
        if not finite.numel():
            return
        places = ((finite.clamp(min=LOWEST) / LOWEST).log2() * PER_OCTAVE).floor().long()
        self.counts += torch.bincount(places.clamp(0, len(self.counts) - 1), minlength=len(self.counts))
        self.minimum = min(self.minimum, finite.min().item())
        self.maximum = max(self.maximum, finite.max().item())

    @property
    def total(self) -> int:
        """How many finite norms were counted."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The norm below which this share lies, within 0.6 %; NaN of nothing."""
        if not self.total:
            return math.nan
        place = int(torch.searchsorted(self.counts.cumsum(0), max(1, math.ceil(share * self.total))))
        centre = LOWEST * 2 ** ((place + 0.5) / PER_OCTAVE)
        return min(max(centre, self.minimum), self.maximum)

    def sample(self, limit: int = 2**20) -> Float64[Tensor, " m"]:
        """About `limit` norms distributed like those counted (all of them if fewer), ascending; rare ones are kept."""
        weights = (self.counts * min(1.0, limit / max(self.total, 1))).ceil().long()
        centres = LOWEST * 2 ** ((torch.arange(len(weights), dtype=torch.float64) + 0.5) / PER_OCTAVE)
        return centres.repeat_interleave(weights)

    def bins(self, per_octave: int = 8) -> tuple[list[float], list[int]]:
        """Edges (one more than counts) and counts of coarser bins, from the first that is not empty to the last."""
        coarse = self.counts.view(-1, PER_OCTAVE // per_octave).sum(dim=1)
        used = coarse.nonzero().flatten().tolist()
        if not used:
            return [], []
        first, last = used[0], used[-1]
        edges = [LOWEST * 2 ** (place / per_octave) for place in range(first, last + 2)]
        return edges, coarse[first : last + 1].tolist()

    def to_dict(self) -> dict[str, Any]:
        """Count, extremes, quantiles and coarse bins, ready for JSON; None where there is nothing."""
        edges, counts = self.bins()
        empty = not self.total
        return {
            "count": self.total,
            "num_nonfinite": self.num_nonfinite,
            "min": None if empty else self.minimum,
            "max": None if empty else self.maximum,
            "quantiles": {f"{share:g}": None if empty else self.quantile(share) for share in QUANTILES},
            "histogram": {"edges": edges, "counts": counts},
        }
