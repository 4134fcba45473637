"""Which patches resemble which token: cosine maps of a patch that was clicked on, of registers, of the class token.

Tensors of any vision transformer go in; the same query may be shown in other images.
Source: the cosine maps of Simeoni et al. 2025 (DINOv3), Fig. 3; registers as queries: Darcet et al. 2024, Fig. 9 by attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def similarity_map(query: Float[Tensor, " d"], features: Float[Tensor, "d gh gw"]) -> Float[Tensor, "gh gw"]:
    """Cosine of one token with each patch, in [-1, 1]; 0 where a vector is zero.

    Raises:
        ValueError: widths that differ.
    """
    return similarity_maps(query[None], features)[0]


def similarity_maps(queries: Float[Tensor, "q d"], features: Float[Tensor, "d gh gw"]) -> Float[Tensor, "q gh gw"]:
    """A cosine map for each of several tokens, registers for example.

    Raises:
        ValueError: widths that differ.
    """
    if queries.shape[-1] != features.shape[0]:
        raise ValueError(
            f"the query is {queries.shape[-1]} wide and the patches are {features.shape[0]}: tokens of two networks can't be compared."
        )
    directions = F.normalize(features.float(), dim=0)
    return torch.einsum("qd,dhw->qhw", F.normalize(queries.float(), dim=-1), directions).clamp(-1, 1)


def patch_at(features: Float[Tensor, "d gh gw"], row: int, column: int) -> Float[Tensor, " d"]:
    """The patch at (row, column) of the grid, counted from 0.

    Raises:
        ValueError: outside of the grid.
    """
    rows, columns = features.shape[1:]
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(
            f"patch ({row}, {column}) of a grid of {rows} x {columns}: rows go from 0 to {rows - 1}, columns from 0 to {columns - 1}."
        )
    return features[:, row, column]


def patch_of_pixel(y: float, x: float, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(Row, column) of the patch that holds pixel (y, x) of a picture of (height, width) that the grid covers.

    Raises:
        ValueError: outside of the picture.
    """
    if not (0 <= y < size[0] and 0 <= x < size[1]):
        raise ValueError(f"pixel ({y}, {x}) of a picture of {size[0]} x {size[1]} (height x width) is outside of it.")
    return int(y * grid[0] / size[0]), int(x * grid[1] / size[1])


def norm_map(features: Float[Tensor, "d gh gw"]) -> Float[Tensor, "gh gw"]:
    """Length of each patch token. For artefacts take tokens from before the final norm, which makes all lengths alike."""
    norms: Tensor = features.float().norm(dim=0)
    return norms
