"""Positions on another grid as Birder resamples them: by size, bicubic or bilinear, antialiased or not.

Source: Birder 0.8.4, `set_dynamic_size`, `adjust_size` and the settings pos_embed_antialias, pos_embed_interpolation_mode.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinokit.config import PositionRule
from dinokit.model import VisionTransformer

Interpolation = Literal["bicubic", "bilinear"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


def resampled(
    vit: VisionTransformer, grid: tuple[int, int], mode: Interpolation, *, antialias: bool
) -> Float[Tensor, "1 q d"]:
    """The position table of `vit` on `grid` (rows, columns); index 0, the class token's, is untouched."""
    if mode == "bicubic":
        return vit.positions.get(vit.pos_embed, vit.config.grid, grid, PositionRule(0.0, antialias))
    table = vit.pos_embed[:, 1:].unflatten(1, vit.config.grid).permute(0, 3, 1, 2).float()  # 1 d gh gw
    table = F.interpolate(table, size=grid, mode=mode, antialias=antialias)
    table = table.permute(0, 2, 3, 1).flatten(1, 2).to(vit.pos_embed.dtype)
    return torch.cat([vit.pos_embed[:, :1], table], dim=1)
