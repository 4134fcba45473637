"""Repairs of the output alone: outliers overwritten by their neighbours, and the average over shifted images.

The first is cosmetic (the attention that led there is unchanged) and serves as a baseline; the second removes what does not move
with the picture. Source of the second: the teacher of PH-Reg (Yan et al. 2025): artefacts are not shift-equivariant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from dinokit.model import VisionTransformer
from dinokit.repair.form import Form, robust_outliers
from dinokit.tokens import Tokens

DEFAULT_SHIFTS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
"""Shifts in whole patches, (down, right)."""


class NeighbourMedian(Form):
    """Patches whose norm after the last block exceeds `factor` times the median become the median of their clean neighbours.

    Of the up to eight around; a patch without a clean neighbour takes the median of all clean patches.
    """

    def __init__(self, model: VisionTransformer, *, factor: float = 4.0) -> None:
        super().__init__(model)
        self.factor = factor

    def run_block(
        self,
        index: int,
        x: Float[Tensor, "b t d"],
        head_mask: Float[Tensor, "depth heads"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The block; after the last one outliers are overwritten."""
        x = super().run_block(index, x, head_mask, grid)
        if index < self.config.depth - 1:
            return x
        if grid is None:
            raise ValueError("this form looks at neighbours and needs the grid; run it through forward or stream.")
        prefix = self.config.num_prefix_tokens
        patches = x[:, prefix:]
        bad = robust_outliers(patches.norm(dim=-1), self.factor)
        return torch.cat([x[:, :prefix], fill_from_neighbours(patches, bad, grid)], dim=1) if bad.any() else x


def fill_from_neighbours(
    patches: Float[Tensor, "b n d"], bad: Shaped[Tensor, "b n"], grid: tuple[int, int]
) -> Float[Tensor, "b n d"]:
    """`patches` with each bad one replaced by the channel-wise median of its clean neighbours."""
    spoiled = patches.masked_fill(bad[..., None], float("nan"))
    image = spoiled.transpose(1, 2).unflatten(2, grid)
    padded = F.pad(image, (1, 1, 1, 1), value=float("nan"))
    around = [padded[..., i : i + grid[0], j : j + grid[1]] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    median = torch.stack(around).nanmedian(dim=0).values.flatten(2).transpose(1, 2)
    everywhere = spoiled.nanmedian(dim=1, keepdim=True).values
    median = torch.where(median.isnan(), everywhere, median)
    return torch.where(bad[..., None], median, patches)


class Denoised(Form):
    """The average of features over the same image shifted by whole patches, each moved back before averaging.

    What belongs to the picture moves with it and stays; what belongs to a place in the grid is spread over as many places as there
    are shifts, a share of 1/n at each. The image is shifted by rolling; patches that rolled over an edge do not count.
    Costs a forward pass a shift. Tokens are after the final norm; `stream` is that of the unshifted image.
    """

    def __init__(
        self, model: VisionTransformer, *, shifts: Sequence[tuple[int, int]] = DEFAULT_SHIFTS, flip: bool = False
    ) -> None:
        super().__init__(model)
        if not shifts:
            raise ValueError("no shifts were given; (0, 0) alone is the network itself.")
        self.shifts, self.flip = tuple(shifts), flip

    @property
    def num_passes(self) -> int:
        """One a shift, twice that with flips."""
        return len(self.shifts) * (2 if self.flip else 1)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Shaped[Tensor, "b n"] | None = None,
        head_mask: Float[Tensor, "depth heads"] | None = None,
    ) -> Tokens:
        """Averaged tokens; prefix tokens are the plain mean over the shifts.

        Raises:
            ValueError: `masks` were given, which do not shift with an image.
        """
        if masks is not None:
            raise ValueError("a denoised form takes no masks.")
        p, grid = self.config.patch_size, self.grid_of(images.shape[-2], images.shape[-1])
        images = images[..., : grid[0] * p, : grid[1] * p]
        prefix = self.config.num_prefix_tokens
        runs = [(flipped, shift) for flipped in ((False, True) if self.flip else (False,)) for shift in self.shifts]
        first, total, counts = (torch.zeros((), dtype=images.dtype, device=images.device) for _ in range(3))
        for flipped, (down, right) in runs:
            source = images.flip(-1) if flipped else images
            tokens = super().forward(source.roll((down * p, right * p), dims=(-2, -1)), None, head_mask)
            features, valid = _moved_back(tokens.patch_map, down, right)
            if flipped:
                features, valid = features.flip(-1), valid.flip(-1)
            first = first + tokens.sequence[:, :prefix] / len(runs)
            total = total + features * valid
            counts = counts + valid
        patches = (total / counts.clamp(min=1)).flatten(2).transpose(1, 2)
        return Tokens(torch.cat([first, patches], dim=1), self.config.num_register_tokens, grid)


def _moved_back(features: Float[Tensor, "b d gh gw"], down: int, right: int) -> tuple[Tensor, Tensor]:
    """Features where the unshifted image has them, and which of them did not roll over an edge."""
    rows, columns = features.shape[-2:]
    valid = torch.ones(rows, columns, dtype=features.dtype, device=features.device)
    valid[rows - down :] = 0
    valid[: max(-down, 0)] = 0
    valid[:, columns - right :] = 0
    valid[:, : max(-right, 0)] = 0
    return features.roll((-down, -right), dims=(-2, -1)), valid
