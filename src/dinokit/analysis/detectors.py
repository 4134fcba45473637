"""Which patches are artefacts, by their norms: one robust rule and the usual ones, each with its blind spots.

Norms (b n) go in, row by row, so an image's verdict does not depend on its batch; to judge many images by one threshold give
them as one row. Rules compare strictly: a token on the threshold is none. What comes out names the rule and its threshold.
Source: Darcet et al. 2024 (absolute); Jiang et al. 2025, appendix A.4 (3 sigma); arXiv 2603.25803 (percentile).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dinokit.analysis.norms import norms_of, warn_if_normed

MAD_TO_SIGMA = 1.4826  # of a normal distribution
MIN_RATIO = 2.0  # a high norm is at least this many times the ordinary one; papers report 4 to 50
MIN_SHARE = 5e-4  # of all tokens; below it a few freaks, not a population
# The largest z-score of two-valued norms is exactly the bound; the formula and not rounding shall decide then.
ROUNDING = 1e-9
# A valley: its width as a share of the logarithmic distance between the two modes, and how many tokens must lie above it. A few
# tokens have wide gaps among them by chance, so for fewer than five the gap must be a third of the way.
VALLEYS = ((1 / 3, 1), (1 / 6, 5))
VALLEY_PLACES = (
    0.5,
    0.55,
    0.45,
    0.6,
    0.4,
    0.65,
    0.35,
    0.7,
    0.3,
    0.75,
    0.8,
    0.85,
    0.9,
)  # the middle first: it wins ties


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a rule says of each row, on the CPU. `threshold` is infinite where nothing counts as an outlier."""

    rule: str
    threshold: Float64[Tensor, " b"]
    mask: Bool[Tensor, "b n"]

    @property
    def share(self) -> float:
        """Share of all tokens that are outliers, in [0, 1]."""
        return self.mask.double().mean().item() if self.mask.numel() else 0.0

    def places(self, row: int = 0) -> list[int]:
        """Numbers of the outliers of one row, ascending."""
        found: list[int] = self.mask[row].nonzero().flatten().tolist()
        return found


Detector = Callable[[Float[Tensor, "b n"]], Detection]


def robust(norms: Float[Tensor, "b n"], sigmas: float = 5.0, ratio: float = MIN_RATIO) -> Detection:
    """The default: far above the median, and apart from the rest.

    Tokens above median + `sigmas` robust deviations and above `ratio` medians are candidates. They count only if the norms are
    bimodal: between the median and the candidates' median (in logarithms) there is a stretch with fewer than half as many tokens as lie
    above it. The emptiest such stretch is the threshold. Works for up to half of the tokens. Blind to artefacts of ordinary norm.
    """
    rule = f"more than {sigmas:g} MAD deviations above the median and {ratio:g} medians, with a valley between"
    values, median = _with_median(norms)
    start = torch.maximum(median + sigmas * _deviation(values, median), ratio * median)
    candidates = values > start
    if not candidates.any():  # most layers of most networks
        return _above(rule, values, torch.full_like(median, math.inf))
    logs = _logs(values)
    low, high = _logs(median), torch.where(candidates, logs, math.nan).nanmedian(dim=1, keepdim=True).values
    emptiest, threshold = torch.full_like(median, 0.5), torch.full_like(median, math.inf)
    for width, least in VALLEYS:
        half = width / 2 * (high - low)
        for place in VALLEY_PLACES:
            middle = low + place * (high - low)
            inside = ((logs - middle).abs() <= half).sum(dim=1, keepdim=True)
            above = (logs > middle + half).sum(dim=1, keepdim=True)
            emptiness = inside / above.clamp(min=1)
            better = (above >= least) & (emptiness < emptiest)
            emptiest = torch.where(better, emptiness.to(emptiest), emptiest)
            threshold = torch.where(better, middle.exp(), threshold)
    return _above(rule, values, threshold)


def absolute(norms: Float[Tensor, "b n"], cutoff: float = 150.0) -> Detection:
    """Above a number that somebody picked by eye: 150 is that of DINOv2's giant at its last layer and of nothing else."""
    values = _with_median(norms)[0]
    return _above(f"above {cutoff:g}", values, torch.full_like(values[:, :1], cutoff))


def median_mad(norms: Float[Tensor, "b n"], sigmas: float = 5.0, floor: float = 0.05) -> Detection:
    """Above the median by `sigmas` robust deviations (1.4826 median absolute deviations, at least `floor` medians).

    Without `robust`'s valley it marks the tail of any skewed distribution, clean networks' included.
    """
    values, median = _with_median(norms)
    deviation = torch.maximum(_deviation(values, median), floor * median)
    return _above(f"more than {sigmas:g} MAD deviations above the median", values, median + sigmas * deviation)


def gap(norms: Float[Tensor, "b n"], ratio: float = MIN_RATIO) -> Detection:
    """Above the widest gap (as a ratio) between neighbours in the upper half of the sorted norms, if it is `ratio` or more.

    Needs an empty gap, so it fits single images; over many images the gap fills up and it finds nothing.
    """
    values, _ = _with_median(norms)
    rule = f"above the widest gap of a factor of {ratio:g} or more"
    ordered = values.sort(dim=1).values[:, (values.shape[1] - 1) // 2 :]
    if ordered.shape[1] < 2:
        return _above(rule, values, torch.full_like(values[:, :1], math.inf))
    logs = _logs(ordered)
    width, at = logs.diff(dim=1).max(dim=1, keepdim=True)
    middle = ((logs.gather(1, at) + logs.gather(1, at + 1)) / 2).exp()
    return _above(rule, values, torch.where(width >= math.log(ratio), middle, math.inf))


def times_median(norms: Float[Tensor, "b n"], factor: float = 3.0) -> Detection:
    """Above `factor` medians."""
    values, median = _with_median(norms)
    return _above(f"above {factor:g} medians", values, factor * median)


def percentile(norms: Float[Tensor, "b n"], percent: float = 98.0) -> Detection:
    """Above this percentile. Always marks about 2 %, of clean networks too, and never more: a count of it says nothing."""
    values = _with_median(norms)[0]
    ordered = values.sort(dim=1).values
    place = percent / 100 * (ordered.shape[1] - 1)  # linear between neighbours, as numpy's default
    below = math.floor(place)
    above = min(below + 1, ordered.shape[1] - 1)
    threshold = torch.lerp(ordered[:, below], ordered[:, above], place - below)
    return _above(f"above the {percent:g}th percentile", values, threshold[:, None])


def three_sigma(norms: Float[Tensor, "b n"], sigmas: float = 3.0) -> Detection:
    """Above mean + `sigmas` standard deviations.

    Blind once outliers are a share of 1 / (1 + sigmas^2) or more, 10 % for 3: they raise the deviation themselves, and the largest
    z-score of two values is sqrt((1 - share) / share).
    """
    values = _with_median(norms)[0]
    mean = values.mean(dim=1, keepdim=True)
    threshold = mean + sigmas * values.std(dim=1, correction=0, keepdim=True)
    return _above(f"more than {sigmas:g} standard deviations above the mean", values, threshold * (1 + ROUNDING))


DETECTORS: Mapping[str, Detector] = {
    "robust": robust,
    "absolute_150": absolute,
    "median_mad": median_mad,
    "gap": gap,
    "3x_median": times_median,
    "percentile_98": percentile,
    "3_sigma": three_sigma,
}
"""Every rule with its usual numbers; `robust` is the one to trust, the others are there to be compared with papers."""


def detect(
    patches: Float[Tensor, "b n d"],
    detector: Detector = robust,
    norm: tuple[Float[Tensor, " d"], Float[Tensor, " d"]] | None = None,
) -> Detection:
    """Artefacts among patch tokens of before the final norm, each image on its own.

    Warns with a `NormedTokensWarning` if the tokens look as if taken after a layer norm. A trained norm is recognised only if its
    weight and bias are given as `norm`.
    """
    warn_if_normed(patches, *(norm or (None, None)))
    return detector(norms_of(patches))


def is_artifact_present(norms: Float[Tensor, "..."], min_share: float = MIN_SHARE) -> bool:
    """Whether these norms, all taken together, have a population of outliers: `robust` finds `min_share` of them at least.

    False for clean networks, where rules that mark a fixed share do not stop marking.
    """
    return norms.numel() > 0 and robust(norms.reshape(1, -1)).share >= min_share


def first_outlier_layer(norms: Sequence[Float[Tensor, "..."]], min_share: float = MIN_SHARE) -> int | None:
    """Index of the first of these layers whose patch norms have outliers, or None.

    Given the stream (embedding first), index i means that block i - 1 wrote them.
    """
    return next((index for index, layer in enumerate(norms) if is_artifact_present(layer, min_share)), None)


def _with_median(norms: Tensor) -> tuple[Tensor, Tensor]:
    if norms.ndim != 2 or not norms.shape[1]:
        raise ValueError(f"norms have shape {tuple(norms.shape)}; expected (images, patches), at least one patch.")
    values = norms.detach().cpu().double()  # few numbers, and not every device knows float64
    return values, values.median(dim=1, keepdim=True).values


def _logs(values: Tensor) -> Tensor:
    return values.clamp(min=torch.finfo(torch.float64).tiny).log()


def _deviation(values: Tensor, median: Tensor) -> Tensor:
    return MAD_TO_SIGMA * (values - median).abs().median(dim=1, keepdim=True).values


def _above(rule: str, values: Tensor, threshold: Tensor) -> Detection:
    return Detection(rule=rule, threshold=threshold[:, 0], mask=values > threshold)
