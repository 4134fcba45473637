"""Maps of patches to maps of pixels, without weights: nearest, bilinear, and joint bilateral with the photograph as guide.

Each result is a weighted mean of patch values, so nothing appears that was not there; sharper edges are the photograph's, not the
network's. Source: Kopf et al. 2007, "Joint Bilateral Upsampling", Eq. 3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RADIUS = 2  # patches to each side


def nearest(values: Float[Tensor, "c gh gw"], size: tuple[int, int]) -> Float[Tensor, "c h w"]:
    """Each pixel has the value of its patch: what the network gave, as it gave it."""
    _check(values, size)
    return F.interpolate(values[None], size, mode="nearest-exact")[0]


def bilinear(values: Float[Tensor, "c gh gw"], size: tuple[int, int]) -> Float[Tensor, "c h w"]:
    """Between the centres of patches in proportion; beyond the outermost centres constant."""
    _check(values, size)
    return F.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]


def joint_bilateral(
    values: Float[Tensor, "c gh gw"],
    photo: Float[Tensor, "k h w"],
    *,
    spatial_sigma: float = 0.75,
    colour_sigma: float = 0.10,
) -> Float[Tensor, "c h w"]:
    """Each pixel takes from the patches around it that have its colour.

    `photo` holds colours in [0, 1] of the pixels that the grid covers. `spatial_sigma` is in patches, `colour_sigma` in units of
    colour (Euclidean). Pixels like no patch around them take the nearest in colour, as the weights are relative.

    Raises:
        ValueError: a sigma that is not positive, fewer pixels than patches, or values that are not finite.
    """
    if not (spatial_sigma > 0 and colour_sigma > 0):
        raise ValueError(f"spatial_sigma is {spatial_sigma}, colour_sigma {colour_sigma}; both are above 0.")
    size, grid = (photo.shape[-2], photo.shape[-1]), (values.shape[-2], values.shape[-1])
    _check(values, size)
    _check(photo, size)
    values, photo = values.float(), photo.float()
    small = F.adaptive_avg_pool2d(photo[None], grid)[0]
    rows, row_weights = _neighbours(size[0], grid[0], spatial_sigma)
    columns, column_weights = _neighbours(size[1], grid[1], spatial_sigma)
    logits = []
    for i in range(2 * RADIUS + 1):
        for j in range(2 * RADIUS + 1):
            guide = small[:, rows[i]][:, :, columns[j]]
            distance = (photo - guide).square().sum(dim=0)
            place = row_weights[i][:, None] + column_weights[j][None]
            logits.append(place - distance / (2 * colour_sigma**2))
    weights = torch.stack(logits).softmax(dim=0)  # relative, so a pixel far from all colours does not divide by zero
    out = values.new_zeros(values.shape[0], *size)
    for k, weight in enumerate(weights):
        i, j = divmod(k, 2 * RADIUS + 1)
        out += weight * values[:, rows[i]][:, :, columns[j]]
    return out


def _neighbours(pixels: int, patches: int, sigma: float) -> tuple[Tensor, Tensor]:
    """For each offset and pixel of an axis: the index of a patch near it, and the logarithm of its weight by distance.

    Patches beyond the edge do not exist: weight 0.
    """
    centre = (torch.arange(pixels) + 0.5) * patches / pixels - 0.5  # in patches
    index = centre.round().long()[None] + torch.arange(-RADIUS, RADIUS + 1)[:, None]
    weight = -((index - centre[None]) ** 2) / (2 * sigma**2)
    outside = (index < 0) | (index >= patches)
    return index.clamp(0, patches - 1), weight.masked_fill(outside, -math.inf)


def _check(values: Tensor, size: tuple[int, int]) -> None:
    rows, columns = values.shape[-2:]
    if values.ndim != 3 or size[0] < rows or size[1] < columns or not values.numel():
        raise ValueError(
            f"a map of shape {tuple(values.shape)} to {size[0]} x {size[1]} pixels: expected (channels, rows, columns), and no fewer "
            f"pixels than patches."
        )
    if not torch.isfinite(values).all():
        raise ValueError("the map holds values that are not finite.")
