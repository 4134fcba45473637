"""Signs of artefacts other than the norm: attention received, disagreement with neighbours, likeness to the class token.

High norm is one symptom among several, and clean norms do not prove clean tokens.
Source: Darcet et al. 2024; Wang et al. 2024 (SINDER, arXiv 2407.16826); LAST-ViT (arXiv 2602.22394) for the last two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def attention_received(attention: Float[Tensor, "b heads t keys"]) -> Float[Tensor, "b keys"]:
    """What each token gets of all attention, mean over heads and queries: in [0, 1], sums to 1; even attention is 1/keys."""
    return attention.float().mean(dim=(1, 2))


def neighbour_cosines(
    patches: Float[Tensor, "b n d"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "b n 4"], Float[Tensor, "n 4"]]:
    """Cosine of each patch with the one above, below, left and right; and 1.0 where that neighbour exists, else 0.0.

    In [-1, 1], 0 where there is none or a vector is zero.

    Raises:
        ValueError: the grid does not have this many patches.
    """
    if patches.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"{patches.shape[1]} patches do not fill a grid of {grid[0]} x {grid[1]}.")
    units = F.normalize(patches.to(torch.promote_types(patches.dtype, torch.float32)), dim=-1)
    cells = F.pad(units.unflatten(1, grid), (0, 0, 1, 1, 1, 1))  # zeros around, whose cosines are 0
    here = F.pad(cells.new_ones(grid), (1, 1, 1, 1))
    rows, columns = slice(1, -1), slice(1, -1)
    around = [(slice(0, -2), columns), (slice(2, None), columns), (rows, slice(0, -2)), (rows, slice(2, None))]
    inner = cells[:, rows, columns]
    cosines = torch.stack([(inner * cells[:, r, c]).sum(dim=-1) for r, c in around], dim=-1)
    exists = torch.stack([here[r, c] for r, c in around], dim=-1)
    return cosines.flatten(1, 2).clamp(-1, 1), exists.flatten(0, 1)


def neighbour_disagreement(patches: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n"]:
    """1 - mean cosine with the neighbours that exist (up to 4): in [0, 2], high where a patch does not fit its surroundings."""
    cosines, exists = neighbour_cosines(patches, grid)
    return 1 - cosines.sum(dim=-1) / exists.sum(dim=-1).clamp(min=1)


def patch_score(cls: Float[Tensor, "b d"], patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
    """Cosine of the class token with each patch, in [-1, 1]: which patches look like what the image is about.

    Source: LAST-ViT (arXiv 2602.22394).
    """
    return F.cosine_similarity(cls[:, None].float(), patches.float(), dim=-1)


def point_in_box(
    scores: Float[Tensor, " n"],
    grid: tuple[int, int],
    patch_size: int,
    boxes: Sequence[tuple[float, float, float, float]],
) -> bool:
    """Whether the centre of the highest-scoring patch lies in any of the boxes (left, top, right, bottom), in pixels.

    The first of equal patches counts.

    Source: LAST-ViT (arXiv 2602.22394).
    """
    row, column = divmod(int(scores.argmax()), grid[1])
    x, y = (column + 0.5) * patch_size, (row + 0.5) * patch_size
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)
