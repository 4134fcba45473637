"""Changes of colour and sharpness for a batch of images in [0, 1], each image with its own amount.

Promise: the same arithmetic on every device, no random numbers; results are not rounded to 8 bits in between.
Source: Pillow's ImageEnhance and ImageOps (definitions), Smith 1978 (hue); formulas in docs/training-data.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LUMA = 0.299, 0.587, 0.114  # ITU-R BT.601, as Pillow's "L"
# 8-bit code inverts levels from 128; here that is what would round to 128 or more.
SOLARIZE_FROM = 127.5 / 255


def luma(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Grey value of each pixel."""
    return (x[:, :1] * LUMA[0]).add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:], alpha=LUMA[2])


def blended(x: Float[Tensor, "n 3 h w"], weights: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 h w"]:
    """Each image mixed from itself, its grey version, and its mean grey, by three weights; clipped to [0, 1].

    (f, 0, 0) is brightness f, (f, 0, 1 - f) contrast, (f, 1 - f, 0) saturation, (0, 1, 0) grey.
    """
    own, grey, mean = weights[:, :, None, None, None].unbind(1)
    level = luma(x)
    rest = level * grey + level.mean(dim=(2, 3), keepdim=True) * mean
    return torch.addcmul(rest, x, own).clamp_(0, 1)


def hue_shifted(x: Float[Tensor, "n 3 h w"], turns: Float[Tensor, " n"]) -> Float[Tensor, "n 3 h w"]:
    """Hue moved round the circle of HSV by a share of a turn; saturation and value stay."""
    red, green, blue = x.unbind(1)
    top = x.amax(dim=1)
    chroma = top - x.amin(dim=1)
    # where grey, chroma is 0 and the hue does not matter
    sixth = (6 * chroma.clamp_min(1e-12)).reciprocal_()
    hue = torch.where(
        top == red,
        (green - blue) * sixth,
        torch.where(top == green, (blue - red) * sixth + 1 / 3, (red - green) * sixth + 2 / 3),
    )
    hue += turns[:, None, None] + 1  # positive, so that what is beyond a turn is the fraction
    out = torch.empty_like(x)
    for channel, corner in enumerate((5 / 6, 3 / 6, 1 / 6)):
        # of six corners of the circle, the channel is at its lowest from one to the third, and rises and falls beside them
        away = (hue + corner).frac_().mul_(6).sub_(2).abs_()
        torch.addcmul(top, chroma, away.neg_().add_(2).clamp_(0, 1), value=-1, out=out[:, channel])
    return out


def blurred(x: Float[Tensor, "n 3 h w"], sigmas: Float[Tensor, " n"], kernel_size: int = 9) -> Float[Tensor, "n 3 h w"]:
    """Convolved with a Gaussian sampled at `kernel_size` pixels and normalised, along both axes; borders are mirrored."""
    reach = kernel_size // 2
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    taps = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    weights = (taps / taps.sum(dim=1, keepdim=True))[:, :, None, None, None].unbind(1)
    for axis in (2, 3):
        length = x.shape[axis]
        padded = _mirrored(x, axis, reach)
        out = padded.narrow(axis, reach, length) * weights[reach]
        for i in range(reach):
            pair = padded.narrow(axis, i, length) + padded.narrow(axis, kernel_size - 1 - i, length)
            out.addcmul_(pair, weights[i])
        x = out
    return x


def _mirrored(x: Tensor, axis: int, reach: int) -> Tensor:
    """The border pixel itself is not repeated; images smaller than the reach are mirrored as often as it takes."""
    length = x.shape[axis]
    if length > reach:
        return F.pad(x, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="reflect")
    period = max(2 * (length - 1), 1)
    index = torch.arange(-reach, length + reach, device=x.device) % period
    return x.index_select(axis, torch.minimum(index, period - index) if length > 1 else index * 0)


def solarized(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Levels of the upper half inverted."""
    return torch.where(x >= SOLARIZE_FROM, 1 - x, x)
