"""The position table on another grid than the trained one: one resampling function under a `PositionRule`, and its cache.

Promise: on the trained grid the table is returned as it is, bit for bit; elsewhere it equals the rule's code base.
Source: facebookresearch/dinov2 (models/vision_transformer.py) and transformers 5.23, see docs/adr/0003.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinokit.config import PositionRule


def resample(
    pos_embed: Float[Tensor, "1 p d"], grid: tuple[int, int], new_grid: tuple[int, int], rule: PositionRule
) -> Float[Tensor, "1 q d"]:
    """`pos_embed` of `grid` on `new_grid`; index 0, the class token's position, is untouched.

    Bicubic, in float32 at least whatever the dtype of the table, given back in that dtype.
    """
    if grid == new_grid:
        return pos_embed
    exact = torch.promote_types(pos_embed.dtype, torch.float32)
    table = pos_embed[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2).to(exact)  # 1 d gh gw
    if rule.offset:
        factors = [(new + rule.offset) / old for new, old in zip(new_grid, grid, strict=True)]
        table = F.interpolate(table, scale_factor=factors, mode="bicubic", antialias=rule.antialias)
    else:
        table = F.interpolate(table, size=new_grid, mode="bicubic", antialias=rule.antialias)
    if tuple(table.shape[-2:]) != new_grid:
        raise ValueError(
            f"position offset {rule.offset} turns grid {grid} into {tuple(table.shape[-2:])} where {new_grid} was asked for; "
            f"use an offset in 0 to 1 (Meta's models: 0.1)."
        )
    table = table.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :1], table], dim=1)


@dataclass
class PositionCache:
    """Resampled tables, one a grid, for inference on a CPU (elsewhere resampling costs less than checking).

    An entry counts only while the table it was made from has the same values, which is compared outright: a version
    counter would miss edits through `.data`, and those give silently wrong vectors.
    """

    limit: int = 8
    source: Tensor | None = field(default=None, repr=False)
    tables: dict[tuple[tuple[int, int], PositionRule], Tensor] = field(default_factory=dict, repr=False)

    def get(
        self, pos_embed: Float[Tensor, "1 p d"], grid: tuple[int, int], new_grid: tuple[int, int], rule: PositionRule
    ) -> Float[Tensor, "1 q d"]:
        """The table for `new_grid`, resampled at most once for each state of `pos_embed`."""
        if grid == new_grid:
            return pos_embed
        if torch.compiler.is_compiling() or pos_embed.device.type != "cpu" or torch.is_grad_enabled():
            return resample(pos_embed, grid, new_grid, rule)
        if self.source is None or self.source.dtype != pos_embed.dtype or not torch.equal(self.source, pos_embed):
            self.clear()
            self.source = pos_embed.detach().clone()
        key = (new_grid, rule)
        if key not in self.tables:
            if len(self.tables) >= self.limit:
                del self.tables[next(iter(self.tables))]
            self.tables[key] = resample(self.source, grid, new_grid, rule)
        return self.tables[key]

    def clear(self) -> None:
        """Forget everything."""
        self.source = None
        self.tables.clear()
