"""The redundancy test: do artefacts appear where a patch looks like its neighbours?

Source: Darcet et al. 2024, section 2.1 and Fig. 5a. The paper leaves open whether positions are added before, what happens at the
border, and whether neighbours are averaged; here it is what the caller gives, existing neighbours only, and an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from dinokit.analysis.signs import neighbour_cosines

Pairing = Literal["pairs", "mean"]


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """Cosines with neighbours, in [-1, 1], of patches that are artefacts later and of those that are not.

    `how` says how they were counted; put it beside any picture of them.
    """

    outlier: Float[Tensor, " m"]
    normal: Float[Tensor, " k"]
    how: str

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Means and medians of both, with their numbers; None where there is nothing."""
        values: dict[str, float | int | str | None] = {"how": self.how}
        for name, cosines in (("outlier", self.outlier), ("normal", self.normal)):
            values[f"{name}_count"] = cosines.numel()
            values[f"{name}_mean"] = cosines.double().mean().item() if cosines.numel() else None
            values[f"{name}_median"] = cosines.double().median().item() if cosines.numel() else None
        return values


def redundancy(
    embeddings: Float[Tensor, "b n d"],
    outliers: Bool[Tensor, "b n"],
    grid: tuple[int, int],
    *,
    positions: Float[Tensor, "n d"] | None = None,
    pairing: Pairing = "pairs",
) -> Redundancy:
    """Cosines of patches with their 4 neighbours at the embedding, split by whether the patch is an artefact at the output.

    `embeddings` come straight from the patch embedding, `model.patch_embed(images)`; `positions` are added if given. With "pairs" each
    (patch, existing neighbour) counts, with "mean" each patch once.

    Raises:
        ValueError: the grid does not fit, or an unknown pairing.
    """
    if pairing not in ("pairs", "mean"):
        raise ValueError(f"pairing is {pairing!r}; it must be 'pairs' or 'mean'.")
    shifted = embeddings if positions is None else embeddings + positions
    cosines, exists = neighbour_cosines(shifted, grid)
    outliers = outliers.to(cosines.device)
    where = "before" if positions is None else "after"
    if pairing == "mean":
        values = cosines.sum(dim=-1) / exists.sum(dim=-1).clamp(min=1)
        has_any = exists.any(dim=-1).expand_as(outliers)
        found = values[outliers & has_any], values[~outliers & has_any]
        how = f"mean over existing neighbours, {where} positions are added"
    else:
        real = exists.bool().expand_as(cosines)
        found = cosines[outliers[..., None] & real], cosines[~outliers[..., None] & real]
        how = f"one value per patch and existing neighbour, {where} positions are added"
    return Redundancy(outlier=found[0], normal=found[1], how=how)


def patch_pixels(images: Float[Tensor, "b c h w"], patch_size: int) -> Float[Tensor, "b n p"]:
    """The pixels of each patch, row by row: p = channels x patch_size x patch_size. What fills no whole patch is dropped."""
    rows, columns = images.shape[-2] // patch_size, images.shape[-1] // patch_size
    cut = images[..., : rows * patch_size, : columns * patch_size]
    cells = cut.unflatten(-2, (rows, patch_size)).unflatten(-1, (columns, patch_size))  # b c gh p gw p
    patches: Tensor = cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)
    return patches
