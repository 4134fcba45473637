"""Objects without labels: what every method returns, and LOST.

LOST: the token that agrees with fewest others lies on an object; tokens that agree with it grow it into a mask and a box.
Source: Simeoni et al. 2021 (LOST), section 3; bias and normalisation of the Gram matrix: Darcet et al. 2024, section 3.3, and
Jiang et al. 2025. The two modes are where paper and published code differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinokit.analysis.affinity import affinity, checked_mask
from dinokit.analysis.components import Box, box_of, component_at

Mode = Literal["reference", "paper"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Objects of one image, best first. Boxes are in patches (see `components.pixel_box`), seeds number the patches row by row.

    `maps` are the pictures that explain the choice, by name; 0 where a token was left out.
    """

    boxes: tuple[Box, ...]
    seeds: tuple[int, ...]
    masks: Bool[Tensor, "objects gh gw"]
    maps: Mapping[str, Float[Tensor, "gh gw"]]
    eigenvalues: tuple[float, ...] = ()

    @property
    def box(self) -> Box:
        """Of the best object."""
        return self.boxes[0]

    @property
    def seed(self) -> int:
        """Of the best object."""
        return self.seeds[0]

    @property
    def mask(self) -> Bool[Tensor, "gh gw"]:
        """Of the best object: one 4-connected part."""
        return self.masks[0]


@dataclass(frozen=True, kw_only=True)
class Lost(Found):
    """What LOST found, and its three pictures."""

    @property
    def degree(self) -> Float[Tensor, "gh gw"]:
        """With how many other tokens each agrees."""
        return self.maps["degree"]

    @property
    def similarity(self) -> Float[Tensor, "gh gw"]:
        """Affinity of each token to the seed."""
        return self.maps["similarity"]

    @property
    def expansion(self) -> Float[Tensor, "gh gw"]:
        """Affinity of each token summed over the seeds that the first one chose; above 0 is the mask."""
        return self.maps["expansion"]


def lost(
    features: Float[Tensor, "n d"],
    hw: tuple[int, int],
    k: int = 100,
    bias: float = 0.0,
    normalize: bool = False,
    token_mask: Bool[Tensor, " n"] | None = None,
    mode: Mode = "reference",
    stable: bool = True,
) -> Lost:
    """The object of one image by LOST; `hw` is (rows, columns) of patches, `features` usually keys of the last block.

    `bias` is added to the Gram matrix: about -1 to 0 with `normalize` (cosines), else in units of the dot products. `k` bounds
    how many tokens of low degree may help the seed. Tokens where `token_mask` is false are neither seeds nor object.
    "reference" counts agreement above 0 without the token itself, as the published code; "paper" counts 0 and the token too.
    Ties of degree go to the first token; with `stable=False` to whichever `torch.argsort` puts first, as in the published code.
    A seed outside of its own expansion gives the box of its patch alone. Objects of more than half the image give the
    background, by construction.

    Raises:
        ValueError: sizes that don't fit, k below 1, an unknown mode, features not finite, or no token left.
    """
    kept = checked_grid(features, hw, token_mask)
    if k < 1:
        raise ValueError(f"k is {k}; at least the seed itself must be allowed: k >= 1.")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(MODES)}.")
    agrees = torch.ge if mode == "paper" else torch.gt
    gram = affinity(features, kind="cosine" if normalize else "dot", bias=bias)
    kept = kept.to(gram.device)
    links = agrees(gram, 0.0) & kept[:, None] & kept[None, :]
    if mode == "reference":
        links.fill_diagonal_(False)
    degree = links.sum(dim=1)
    order = torch.argsort(degree, stable=stable)
    order = order[kept[order]]
    seed = int(order[0])
    seeds = order[:k][agrees(gram[seed, order[:k]], 0.0)]
    expansion = gram[seeds].sum(dim=0)
    # Without any seed the sum is 0 everywhere, which ">=" would take for agreement.
    inside = agrees(expansion, 0.0) & kept if len(seeds) else torch.zeros_like(kept)
    mask = component_at(inside.view(hw), seed)
    maps = {"degree": degree.to(gram.dtype), "similarity": gram[seed] * kept, "expansion": expansion * kept}
    return Lost(
        boxes=(box_of(mask),),
        seeds=(seed,),
        masks=mask[None],
        maps={name: values.view(hw) for name, values in maps.items()},
    )


def checked_grid(
    features: Float[Tensor, "n d"], hw: tuple[int, int], token_mask: Bool[Tensor, " n"] | None
) -> Bool[Tensor, " n"]:
    """Which tokens take part.

    Raises:
        ValueError: `features` are not one row a patch of a grid `hw`, or the mask is not.
    """
    if features.ndim != 2 or features.shape[0] != hw[0] * hw[1]:
        raise ValueError(
            f"features have shape {tuple(features.shape)}; a grid of {hw[0]} x {hw[1]} patches (rows x columns) needs "
            f"({hw[0] * hw[1]}, width): patch tokens only, of one image."
        )
    return checked_mask(token_mask, features.shape[0])


def lone_token(kept: Bool[Tensor, " n"], hw: tuple[int, int]) -> Found | None:
    """What every cut in two gives where only one token is left: that token. None where there are more."""
    if int(kept.sum()) != 1:
        return None
    mask = kept.cpu().view(hw)
    return Found(boxes=(box_of(mask),), seeds=(int(kept.nonzero()[0, 0]),), masks=mask[None], maps={})
