"""The direction in which artefacts should point, predicted from weights alone, and a detector that looks along it.

Each half of a block is taken as a linear map plus the identity; what the product of these maps stretches most is the prediction.
Source: Wang et al. 2024 (SINDER, arXiv 2407.16826), sections 3.1 to 3.3; the detector only, as the repair is training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from dinokit.analysis.detectors import Detection

SAMPLES_PER_CHANNEL = 8


@dataclass(frozen=True, kw_only=True)
class DefectDirection:
    """A unit vector, how much the weights stretch it, and how much they stretch the next one.

    `gain` close to 1 or to `runner_up` means that the weights single out no direction: the vector is then arbitrary.
    """

    vector: Float64[Tensor, " d"]
    gain: float
    runner_up: float


def attention_map(
    value: Float[Tensor, "d d"],
    projection: Float[Tensor, "d d"],
    norm: Float[Tensor, " d"] | None = None,
    scale: Float[Tensor, " d"] | None = None,
) -> Float64[Tensor, "d d"]:
    """What attention adds to a token that attends to itself alone: scale * projection @ value @ (norm * centred token).

    `value` and `projection` are weights of linear layers as PyTorch keeps them, `norm` the layer norm's weight before, `scale` the
    layer scale after; ones if not given.
    """
    inner = projection.double() @ value.double()
    if norm is not None:
        inner = inner * norm.double()
    return _scaled(inner, scale) @ centring(inner.shape[1]).to(inner.device)


def feed_forward_map(
    neurons: Callable[[Float[Tensor, "1 m d"]], Float[Tensor, "1 m hidden"]],
    output: Float[Tensor, "d hidden"],
    norm: tuple[Float[Tensor, " d"], Float[Tensor, " d"]] | None = None,
    scale: Float[Tensor, " d"] | None = None,
    *,
    seed: int = 0,
) -> Float64[Tensor, "d d"]:
    """What a feed-forward network adds, as the linear map that fits it best (least squares) on random normal tokens.

    `neurons` gives hidden activations of tokens that the norm (weight, bias) has left, `output` is the weight that reads them. Neurons
    that fire rarely, as gated ones do, are hardly seen by the fit: their effect is missing from the map.
    """
    width = output.shape[0]
    z = torch.randn(SAMPLES_PER_CHANNEL * width, width, generator=torch.Generator().manual_seed(seed))
    z = z.to(output.device)
    seen = z if norm is None else z * norm[0].to(z) + norm[1].to(z)
    hidden = neurons(seen.to(output.dtype)[None])[0].double()
    design = torch.cat(
        [z.double(), torch.ones_like(z[:, :1], dtype=torch.float64)], dim=1
    )  # the last column: a constant
    fitted = torch.linalg.lstsq(design, hidden).solution[:-1]
    return _scaled(output.double() @ fitted.T, scale) @ centring(width).to(output.device)


def defect_direction(maps: Iterable[Float[Tensor, "d d"]]) -> DefectDirection:
    """The leading left singular vector of the product of (identity + map), the first map being applied first.

    Its sign is arbitrary. Give the maps of a block in their order, attention first, up to the layer that is to be judged.

    Raises:
        ValueError: no map.
    """
    product: Tensor | None = None
    for each in maps:
        step = torch.eye(each.shape[0], dtype=torch.float64, device=each.device) + each.double()
        product = step if product is None else step @ product
    if product is None:
        raise ValueError("there is no map; give those of at least one block.")
    left, gains, _ = torch.linalg.svd(product)
    return DefectDirection(vector=left[:, 0], gain=gains[0].item(), runner_up=gains[1].item())


def direction_logits(tokens: Float[Tensor, "b n d"], direction: Float[Tensor, " d"]) -> Float[Tensor, "b n"]:
    """How much each token points along the direction, whichever its sign: |cosine|, in [0, 1]."""
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return (F.normalize(wide, dim=-1) @ F.normalize(direction.to(wide), dim=0)).abs().clamp(max=1.0)


def along_direction(
    tokens: Float[Tensor, "b n d"],
    direction: Float[Tensor, " d"],
    sigmas: float = 4.0,
    mean: float | None = None,
    deviation: float | None = None,
) -> Detection:
    """Tokens whose logit exceeds mean + 4 standard deviations.

    Of their own image, unless `mean` and `deviation` of clean tokens are given; and then as blind as any such rule: 4 deviations are
    never reached once artefacts are 1/17 of an image.
    """
    logits = direction_logits(tokens, direction).detach().cpu().double()
    middle = logits.mean(dim=1) if mean is None else logits.new_full(logits.shape[:1], mean)
    spread = logits.std(dim=1, correction=0) if deviation is None else logits.new_full(logits.shape[:1], deviation)
    threshold = middle + sigmas * spread
    return Detection(
        rule=f"logit along the defect direction above mean + {sigmas:g} standard deviations",
        threshold=threshold,
        mask=logits > threshold[:, None] * (1 + 1e-9),
    )


def centring(width: int) -> Float64[Tensor, "d d"]:
    """The matrix that takes a vector's mean off it."""
    return torch.eye(width, dtype=torch.float64) - 1.0 / width


def _scaled(matrix: Tensor, scale: Tensor | None) -> Tensor:
    return matrix if scale is None else scale.double()[:, None] * matrix
