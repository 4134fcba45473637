"""What a model gives for a batch of images: one tensor, and names for its parts.

The order is [class token, registers, patches row by row], as in Meta's models and in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Pool = Literal["cls", "mean", "cls+mean", "registers", "patches"]
POOLS: tuple[Pool, ...] = get_args(Pool)


@dataclass(frozen=True)
class Tokens:
    """Views of `sequence`; nothing is copied.

    `grid` is (rows, columns) of patches. Whether the final layer norm was applied is said by whoever made the tokens.
    """

    sequence: Float[Tensor, "b t d"]
    num_registers: int
    grid: tuple[int, int]

    @property
    def cls(self) -> Float[Tensor, "b d"]:
        """The class token."""
        return self.sequence[:, 0]

    @property
    def registers(self) -> Float[Tensor, "b r d"]:
        """The register tokens; empty (r = 0) for a model without."""
        return self.sequence[:, 1 : 1 + self.num_registers]

    @property
    def patches(self) -> Float[Tensor, "b n d"]:
        """The patch tokens, row by row."""
        return self.sequence[:, 1 + self.num_registers :]

    @property
    def patch_map(self) -> Float[Tensor, "b d gh gw"]:
        """The patch tokens as an image of features."""
        patches = self.patches.transpose(1, 2)
        return patches.view(*patches.shape[:2], *self.grid)

    def pool(self, how: Pool = "cls") -> Float[Tensor, "b ..."]:
        """Tokens to a feature: (b, d); (b, 2d) for "cls+mean"; (b, r, d) for "registers"; (b, n, d) for "patches".

        "mean" is the mean over the patches; registers never take part (Oquab et al. 2023, section 7).

        Raises:
            ValueError: an unknown name, or "registers" of a model that has none.
        """
        match how:
            case "cls":
                return self.cls
            case "mean":
                return self.patches.mean(dim=1)
            case "cls+mean":
                return torch.cat([self.cls, self.patches.mean(dim=1)], dim=-1)
            case "registers":
                if not self.num_registers:
                    raise ValueError(
                        "pool='registers': this model has no register tokens; use 'cls', 'mean', 'cls+mean' or 'patches'."
                    )
                return self.registers
            case "patches":
                return self.patches
        raise ValueError(f"pool is {how!r}; it must be one of {', '.join(POOLS)}.")


torch.export.register_dataclass(Tokens)
