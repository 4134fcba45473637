"""An 8 x 8 grid of unit features with an object of 3 x 4 patches (columns 2 to 4, rows 3 to 6), all closed forms known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HW = (8, 8)
OBJECT_BOX = (2, 3, 5, 7)
NUM_OBJECT, NUM_GROUND = 12, 52
STRAY = 63  # the bottom right corner


def object_mask(box: tuple[int, int, int, int] = OBJECT_BOX) -> Tensor:
    """True inside of `box` = (left, top, right, bottom)."""
    mask = torch.zeros(HW, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def features(cosine: float, mask: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit features, equal within object and ground, with this cosine between the two; axes 0 and 1 of 8."""
    mask = object_mask() if mask is None else mask
    ground, thing = torch.zeros(8, dtype=dtype), torch.zeros(8, dtype=dtype)
    ground[0] = 1.0
    thing[0], thing[1] = cosine, math.sqrt(1 - cosine * cosine)
    return torch.where(mask.flatten()[:, None], thing, ground)


def with_stray(feats: Tensor, cosine: float = 0.0, at: int = STRAY, norm: float = 300.0) -> Tensor:
    """The same with an artefact token of this norm that has one cosine to object and ground alike."""
    feats = feats.clone()
    between = float(feats[object_mask().flatten()][0] @ feats[0])
    share = cosine / (1 + between)
    stray = share * (feats[object_mask().flatten()][0] + feats[0])
    stray[7] = math.sqrt(1 - float(stray @ stray))
    feats[at] = norm * stray
    return feats
