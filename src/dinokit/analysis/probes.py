"""What tokens hold, by linear probes: where a patch is, what it looks like, what the image is about.

Images are divided into those a probe is fitted on and those it is judged on; with the same seed the same numbers come out.
Source: Darcet et al. 2024, section 2.1, Fig. 5b and Tables 1, 4, 5. Where the paper is silent (one probe or one for each kind of token,
images without artefacts, units) this is an argument or is reported.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dinokit.analysis.linear import Probe, fit_classifier, fit_ridge

FitOn = Literal["all", "separate"]
KINDS = ("normal", "outlier")


@dataclass(frozen=True, kw_only=True)
class PositionScore:
    """`top1` in [0, 1]; `distance` is the mean Euclidean distance between the true and the predicted place, in patches."""

    top1: float
    distance: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class PixelScore:
    """`rmse` is per value, `l2` the mean length of a patch's error; both in the units of the pixels that were given."""

    rmse: float
    l2: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Accuracy in [0, 1]: mean and standard deviation over repeated choices of the token (0 for the class token and registers)."""

    accuracy: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class TokenProbe:
    """Rows of Table 1: "cls", "normal", "outlier", and "register_1" and so on; all of the same images.

    `coverage` is the share of images that have both an artefact and a normal patch, and so took part.
    """

    rows: dict[str, ClassScore]
    coverage: float
    num_train: int
    num_test: int
    num_classes: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def split_images(num: int, share: float = 0.5, seed: int = 0) -> Bool[Tensor, " num"]:
    """A random choice of images to fit on: true for about `share` of them, for at least one, and for all but one at most."""
    if num < 2:
        raise ValueError(
            f"{num} image: probes need one to fit on and another to be judged on, better hundreds of each."
        )
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(num, dtype=torch.bool)
    chosen[order[: min(max(round(share * num), 1), num - 1)]] = True
    return chosen


def position_probe(
    patches: Float[Tensor, "b n d"],
    outliers: Bool[Tensor, "b n"],
    grid: tuple[int, int],
    *,
    fit_on: FitOn = "all",
    train: Bool[Tensor, " b"] | None = None,
    penalty: float = 1e-4,
    seed: int = 0,
) -> dict[str, PositionScore | None]:
    """How well a linear classifier tells from one patch token where in the grid it is: for "normal" and "outlier" tokens.

    `fit_on` "all" fits one classifier on both kinds, "separate" one on each. `train` says which images are fitted on, by default a
    random half. None for a kind that has no token to fit on or to judge.

    Source: Darcet et al. 2024, Fig. 5b.
    """
    num = grid[0] * grid[1]
    if patches.shape[1] != num:
        raise ValueError(f"{patches.shape[1]} patches do not fill a grid of {grid[0]} x {grid[1]}.")
    places = torch.arange(num, device=patches.device).expand(patches.shape[:2])
    scores: dict[str, PositionScore | None] = {}
    for kind, fitted, judged in _groups(outliers, train, fit_on, seed):
        if not (fitted.any() and judged.any()):
            scores[kind] = None
            continue
        probe = fit_classifier(patches[fitted], places[fitted], num, penalty)
        predicted, true = probe(patches[judged]).argmax(dim=-1), places[judged]
        across = (predicted % grid[1] - true % grid[1]).double()
        down = (predicted // grid[1] - true // grid[1]).double()
        scores[kind] = PositionScore(
            top1=(predicted == true).double().mean().item(),
            distance=torch.hypot(across, down).mean().item(),
            num_tokens=len(true),
        )
    return scores


def pixel_probe(
    patches: Float[Tensor, "b n d"],
    pixels: Float[Tensor, "b n p"],
    outliers: Bool[Tensor, "b n"],
    *,
    fit_on: FitOn = "all",
    train: Bool[Tensor, " b"] | None = None,
    penalty: float = 1e-6,
    seed: int = 0,
) -> dict[str, PixelScore | None]:
    """How well a linear map rebuilds a patch's pixels (`redundancy.patch_pixels`) from its token; as `position_probe` otherwise.

    Source: Darcet et al. 2024, Fig. 5b.
    """
    scores: dict[str, PixelScore | None] = {}
    for kind, fitted, judged in _groups(outliers, train, fit_on, seed):
        if not (fitted.any() and judged.any()):
            scores[kind] = None
            continue
        probe = fit_ridge(patches[fitted], pixels[fitted], penalty)
        error = probe(patches[judged]) - pixels[judged].double()
        scores[kind] = PixelScore(
            rmse=error.square().mean().sqrt().item(), l2=error.norm(dim=-1).mean().item(), num_tokens=len(error)
        )
    return scores


def token_probe(
    cls: Float[Tensor, "b d"],
    patches: Float[Tensor, "b n d"],
    outliers: Bool[Tensor, "b n"],
    labels: Int64[Tensor, " b"],
    registers: Float[Tensor, "b r d"] | None = None,
    *,
    train: Bool[Tensor, " b"] | None = None,
    repeats: int = 1,
    penalty: float = 1e-4,
    seed: int = 0,
) -> TokenProbe:
    """How well a linear classifier tells the image's class from one token: the class token, a patch, an artefact, each register.

    Of each image one normal patch and one artefact are drawn, `repeats` times. Images without artefacts take part in no row, so that
    rows can be compared; `train` says which are fitted on, by default a random half of those that take part.

    Raises:
        ValueError: fewer than two images have both kinds of patch, or none is left to fit on or to judge.
    Source: Darcet et al. 2024, Table 1; deviations as in Table 6.
    """
    used = outliers.any(dim=1) & (~outliers).any(dim=1)
    if int(used.sum()) < 2:
        raise ValueError(
            f"{int(used.sum())} of {len(used)} images have artefacts and normal patches; this probe compares them on the same images."
        )
    chosen = split_images(int(used.sum()), seed=seed).to(used.device) if train is None else train.to(used.device)[used]
    if chosen.all() or not chosen.any():
        raise ValueError("no image is left to fit on, or to judge; divide the images that have artefacts.")
    num_classes, classes = int(labels.max()) + 1, labels[used]
    generator = torch.Generator().manual_seed(seed)
    fixed = {"cls": cls[used]}
    if registers is not None:
        fixed |= {f"register_{i + 1}": registers[used, i] for i in range(registers.shape[1])}
    found = {name: [_accuracy(tokens, classes, chosen, num_classes, penalty)] for name, tokens in fixed.items()}
    for kind, mask in (("normal", ~outliers), ("outlier", outliers)):
        found[kind] = [
            _accuracy(_one_of_each(patches[used], mask[used], generator), classes, chosen, num_classes, penalty)
            for _ in range(repeats)
        ]
    order = ["cls", *KINDS, *(name for name in found if name.startswith("register"))]
    return TokenProbe(
        rows={name: _score(found[name]) for name in order},
        coverage=used.double().mean().item(),
        num_train=int(chosen.sum()),
        num_test=int((~chosen).sum()),
        num_classes=num_classes,
    )


def _one_of_each(patches: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    picked = torch.multinomial(mask.double().cpu(), 1, generator=generator).to(patches.device)
    return patches.gather(1, picked[..., None].expand(-1, 1, patches.shape[2]))[:, 0]


def _accuracy(tokens: Tensor, labels: Tensor, train: Tensor, num_classes: int, penalty: float) -> float:
    labels, train = labels.to(tokens.device), train.to(tokens.device)
    probe: Probe = fit_classifier(tokens[train], labels[train], num_classes, penalty)
    return (probe(tokens[~train]).argmax(dim=-1) == labels[~train]).double().mean().item()


def _score(accuracies: list[float]) -> ClassScore:
    mean = sum(accuracies) / len(accuracies)
    variance = sum((value - mean) ** 2 for value in accuracies) / max(len(accuracies) - 1, 1)
    return ClassScore(accuracy=mean, deviation=math.sqrt(variance))


def _groups(
    outliers: Tensor, train: Tensor | None, fit_on: FitOn, seed: int
) -> list[tuple[str, Bool[Tensor, "b n"], Bool[Tensor, "b n"]]]:
    """For each kind its name, the tokens to fit on and those to judge."""
    if fit_on not in ("all", "separate"):
        raise ValueError(f"fit_on is {fit_on!r}; it must be 'all' or 'separate'.")
    images = split_images(len(outliers), seed=seed) if train is None else train
    fitting = images.to(outliers.device)[:, None].expand_as(outliers)
    masks = {"normal": ~outliers, "outlier": outliers}
    return [(kind, fitting & (masks[kind] if fit_on == "separate" else True), ~fitting & masks[kind]) for kind in KINDS]
