"""Patches as colours: one PCA over the patches of many images, kept as an object that gives other images the same colours.

The signs of principal components are arbitrary; here a rule fixes them, so two runs, two machines and two frames agree.
Source: Oquab et al. 2023 (DINOv2), Fig. 1 (three components, foreground by the first); Darcet et al. 2024, Fig. 20 (+-3 sigma).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinokit.errors import StorageError, WeightsError

Scaling = Literal["percentile", "minmax", "sigma"]
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
PERCENTILES = (1.0, 99.0)
SIGMAS = 3.0
# Components with less than this share of the variance are rounding noise; their direction would differ between machines.
NEGLIGIBLE = 1e-10
FILE_VERSION = 1
LANCZOS_FROM, LANCZOS_BLOCK, LANCZOS_RESIDUAL = 256, 6, 1e-10


@dataclass(frozen=True)
class PatchPCA:
    """A fitted basis: features to three numbers, and these to red, green and blue.

    `components` are orthonormal rows (zeros where the features have fewer dimensions), `shares` their parts of the variance.
    `low` and `high` are the scores that become 0 and 1. `axis` and `threshold` belong to the foreground: patches whose
    (feature - `centre`) . `axis` is above `threshold`; the threshold is -inf where no foreground was asked for.
    """

    mean: Float[Tensor, " d"]
    components: Float[Tensor, "3 d"]
    shares: Float[Tensor, " 3"]
    low: Float[Tensor, " 3"]
    high: Float[Tensor, " 3"]
    centre: Float[Tensor, " d"]
    axis: Float[Tensor, " d"]
    threshold: Float[Tensor, ""]

    @classmethod
    def fit(
        cls,
        maps: Sequence[Float[Tensor, "d _ _"]],
        *,
        scaling: Scaling = "percentile",
        foreground: bool = False,
        threshold: float | None = None,
        keep: Sequence[Bool[Tensor, "_ _"]] | None = None,
    ) -> PatchPCA:
        """Fit one basis on the patches of all `maps` (`Tokens.patch_map` of each image; grids may differ).

        `scaling` says which scores span the colours: the 1st to the 99th percentile, the smallest to the largest, or
        +-3 standard deviations. With `foreground`, patches above `threshold` on the first component count as foreground
        (by default Otsu's threshold, the cut that separates the scores best), a second PCA is fitted on these alone, and the
        rest is black. `keep` leaves patches out of the fit, outliers for example; they are still coloured.

        The sign rule: a component points away from the border. The outermost ring of patches, mostly background, has a
        mean score of at most 0 on it, so what is in the middle is positive. On a tie the largest entry is positive.

        Raises:
            ValueError: no patch, widths that differ, values that are not finite, an unknown scaling, or no foreground.
        """
        if scaling not in SCALINGS:
            raise ValueError(f"scaling is {scaling!r}; it must be one of {', '.join(SCALINGS)}.")
        patches, border = _collect(maps, keep)
        mean, components, shares = _principal(patches, _border_mean(patches, border), 3)
        centre, axis, cut = mean, components[0], torch.tensor(-torch.inf, dtype=torch.float64)
        if foreground:
            scores = (patches - centre) @ axis
            cut = _otsu(scores) if threshold is None else torch.tensor(threshold, dtype=torch.float64)
            inside = scores > cut
            if inside.sum() < 2:
                raise ValueError(
                    f"{int(inside.sum())} of {len(scores)} patches lie above {float(cut):.4g} on the first component: no foreground. "
                    f"Scores go from {float(scores.min()):.4g} to {float(scores.max()):.4g}; choose another threshold."
                )
            # On the foreground alone the border rule would have nothing to hold on to: its signs follow the whole picture's.
            patches, reference = patches[inside], _border_mean(patches, border)
            mean, components, shares = _principal(patches, reference, 3)
        low, high = _range((patches - mean) @ components.T, scaling)
        made = (mean, components, shares, low, high, centre, axis, cut)
        return cls(*(tensor.float() for tensor in made))

    def scores(self, features: Float[Tensor, "d gh gw"]) -> Float[Tensor, "3 gh gw"]:
        """Each patch on each component."""
        centred = self._checked(features) - self.mean[:, None, None]
        return torch.einsum("kd,dhw->khw", self.components, centred)

    def foreground(self, features: Float[Tensor, "d gh gw"]) -> Bool[Tensor, "gh gw"]:
        """Which patches count as foreground; all of them if the basis was fitted without."""
        centred = self._checked(features) - self.centre[:, None, None]
        return torch.einsum("d,dhw->hw", self.axis, centred) > self.threshold

    def transform(self, features: Float[Tensor, "d gh gw"]) -> Float[Tensor, "gh gw 3"]:
        """Red, green and blue in [0, 1]; the background is black, a component without variance is 0.5.

        Raises:
            ValueError: features of another width, or not finite.
        """
        spread = self.high - self.low
        flat = spread <= 0
        scores = self.scores(features).permute(1, 2, 0)
        colours = torch.where(flat, 0.5, (scores - self.low) / torch.where(flat, 1.0, spread)).clamp(0, 1)
        return colours * self.foreground(features)[..., None]

    def save(self, path: str | Path) -> Path:
        """Write the basis as an .npz file, all of it or nothing.

        Raises:
            StorageError: the disk refuses.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        arrays = {field.name: getattr(self, field.name).numpy() for field in fields(self)}
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, version=np.array(FILE_VERSION), **arrays)
            temporary.replace(path)
        except OSError as error:
            raise StorageError(f"{path} can't be written: {error.strerror or error}.") from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> PatchPCA:
        """Read what `save` wrote.

        Raises:
            WeightsError: the file is not there, damaged, or no basis.
        """
        try:
            with np.load(path, allow_pickle=False) as found:
                version = int(found["version"])
                tensors = {field.name: torch.from_numpy(found[field.name]) for field in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise WeightsError(f"{path} is no PCA basis of dinokit ({error}); fit one and save it.") from error
        if version != FILE_VERSION or tensors["components"].shape != (3, *tensors["mean"].shape):
            raise WeightsError(f"{path} is a PCA basis of version {version} that this dinokit can't use; fit it again.")
        return cls(**tensors)

    def _checked(self, features: Float[Tensor, "d gh gw"]) -> Float[Tensor, "d gh gw"]:
        if features.ndim != 3 or features.shape[0] != len(self.mean):
            raise ValueError(
                f"features have shape {tuple(features.shape)}; this basis takes ({len(self.mean)}, rows, columns). "
                f"It was fitted on tokens of another network."
            )
        features = features.detach().float().cpu()
        if not torch.isfinite(features).all():
            raise ValueError("features hold values that are not finite; they have no colour.")
        return features


def _collect(
    maps: Sequence[Float[Tensor, "d _ _"]], keep: Sequence[Bool[Tensor, "_ _"]] | None
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, " n"]]:
    """All patches in float64, and which of them lie on the outermost ring of their grid."""
    widths = sorted({features.shape[0] for features in maps})
    if len(widths) != 1 or any(features.ndim != 3 for features in maps):
        shapes = ", ".join(str(tuple(features.shape)) for features in maps[:4]) or "none"
        raise ValueError(
            f"maps to fit on: {shapes}; expected one or more of shape (width, rows, columns) of one width."
        )
    if keep is not None and len(keep) != len(maps):
        raise ValueError(f"keep has {len(keep)} masks for {len(maps)} maps; give one a map, or none.")
    patches, border = [], []
    for index, features in enumerate(maps):
        ring = torch.ones(features.shape[1:], dtype=torch.bool)
        ring[1:-1, 1:-1] = False
        chosen = torch.ones_like(ring) if keep is None else keep[index].cpu()
        patches.append(features.detach().cpu().permute(1, 2, 0)[chosen].double())
        border.append(ring[chosen])
    together = torch.cat(patches)
    if len(together) < 2:
        raise ValueError(f"{len(together)} patches to fit a PCA on; it takes two or more.")
    if not torch.isfinite(together).all():
        raise ValueError(
            "patches to fit a PCA on hold values that are not finite; look for half precision or a damaged file."
        )
    return together, torch.cat(border)


def _border_mean(patches: Float[Tensor, "n d"], border: Bool[Tensor, " n"]) -> Float[Tensor, " d"]:
    """Where the border lies, as seen from the mean of everything."""
    mean = patches.mean(dim=0)
    return patches[border].mean(dim=0) - mean if border.any() else torch.zeros_like(mean)


def _principal(
    patches: Float[Tensor, "n d"], border: Float[Tensor, " d"], count: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Mean, leading components with their signs fixed, and their shares of the variance."""
    mean = patches.mean(dim=0)
    centred = patches - mean
    values, vectors = _leading(centred.T @ centred, count)
    total = centred.square().sum()
    components, shares = patches.new_zeros(count, patches.shape[1]), patches.new_zeros(count)
    for k in range(min(count, len(values))):
        value, vector = values[-1 - k], vectors[:, -1 - k]
        if value <= NEGLIGIBLE * total or total <= NEGLIGIBLE * (patches.square().sum() + 1e-300):
            break
        leaning = vector @ border
        tie = leaning.abs() <= 1e-9 * border.norm()
        sign = vector[vector.abs().argmax()].sign() if tie else -leaning.sign()
        components[k], shares[k] = sign * vector, value / total
    return mean, components, shares


def _leading(matrix: Float[Tensor, "d d"], count: int) -> tuple[Float[Tensor, " m"], Float[Tensor, "d m"]]:
    """The largest eigenvalues of a symmetric matrix, ascending, at least `count`, with their vectors.

    A wide matrix by block Lanczos with full reorthogonalisation, to a residual of 1e-10 of the largest eigenvalue: on tokens of
    photographs seven times as fast as all 768 vectors, of which three are wanted. Where that does not converge, all after all.
    """
    width = len(matrix)
    if width < LANCZOS_FROM:
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors
    start = torch.randn(width, LANCZOS_BLOCK, generator=torch.Generator().manual_seed(0), dtype=matrix.dtype)
    basis = block = torch.linalg.qr(start).Q
    for step in range(width // (2 * LANCZOS_BLOCK)):
        block = matrix @ block
        for _ in range(2):  # once is not enough: what is left may be mostly rounding
            block = block - basis @ (basis.T @ block)
        block = torch.linalg.qr(block).Q
        block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis = torch.cat([basis, block], dim=1)
        if step % 4 != 3:
            continue
        values, small = torch.linalg.eigh(basis.T @ (matrix @ basis))
        vectors = basis @ small[:, -count:]
        residual = matrix @ vectors - vectors * values[-count:]
        if residual.norm(dim=0).max() <= LANCZOS_RESIDUAL * values[-1].abs():
            return values[-count:], vectors
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def _range(scores: Float[Tensor, "n k"], scaling: Scaling) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """The scores that become 0 and 1."""
    if scaling == "minmax":
        return scores.min(dim=0).values, scores.max(dim=0).values
    if scaling == "sigma":
        reach = SIGMAS * scores.std(dim=0, correction=0)
        return -reach, reach
    low, high = np.percentile(scores.numpy(), PERCENTILES, axis=0)  # torch.quantile has a limit on the size
    return torch.from_numpy(low), torch.from_numpy(high)


def _otsu(scores: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The cut that leaves the largest variance between the two sides, in the middle of the gap it falls into (Otsu 1979)."""
    ordered = scores.sort().values
    n = len(ordered)
    below = torch.arange(1, n, dtype=torch.float64)
    means = ordered.cumsum(0)[:-1] / below
    total = ordered.mean()
    between = below / (n - below) * (means - total) ** 2
    cut = int(between.argmax())
    return (ordered[cut] + ordered[cut + 1]) / 2
