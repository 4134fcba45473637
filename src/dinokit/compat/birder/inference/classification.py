"""One image, or one batch, through a net: Birder's `infer_image` and `infer_batch`.

Promise: equal to Birder 0.8.4 on the recorded image to float rounding, its softmax over an embedding included.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Shaped
from numpy import ndarray
from PIL import Image
from torch import Tensor, nn

from dinokit.images import decode
from dinokit.images.geometry import centre

TTA_CROP = 0.8  # Birder's five crops show this much of each side

Found = tuple[Float32[ndarray, "b _"], Float32[ndarray, "b d"] | None]


@runtime_checkable
class Net(Protocol):
    """What is asked of a net; `BirderNet` has it."""

    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Logits."""

    def embedding(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Embeddings."""

    def classify(self, x: Tensor) -> Tensor:
        """Logits of embeddings."""


def infer_image(
    net: Net,
    sample: Image.Image | str | Path | Shaped[ndarray, "..."],
    transform: Callable[[Image.Image], Tensor],
    return_embedding: bool = False,
    tta: bool = False,
    return_logits: bool = False,
    device: torch.device | str | None = None,
    **kwargs: Any,
) -> Found:
    """(Output, embedding or None) of one image, each with a batch of 1; see `infer_batch`.

    `sample` is a path, a PIL image or an array; it reaches `transform` upright and as RGB. `device` is where the input goes, by
    default where the net is; the net itself is not moved.

    Raises:
        ImageError: the image can't be decoded.
    """
    image = decode(sample).image
    inputs = transform(image).unsqueeze(0).to(device or _device_of(net))
    return infer_batch(net, inputs, return_embedding, tta, return_logits, **kwargs)


@torch.inference_mode()
def infer_batch(
    net: Net,
    inputs: Float[Tensor, "b c h w"],
    return_embedding: bool = False,
    tta: bool = False,
    return_logits: bool = False,
    **kwargs: Any,
) -> Found:
    """(Output, embedding or None) of a batch, as float32 arrays.

    The output is the softmax of the logits, or these with `return_logits`. A net without classes, such as the released
    ones, has its embedding for logits, so that its output is the softmax of the embedding: use the embedding. `tta` averages
    the outputs of five crops (corners and middle), each resized to the input's size; `return_embedding` excludes it and
    wins. `kwargs` go to the net.
    """

    def output(logits: Tensor) -> Tensor:
        return logits if return_logits else F.softmax(logits, dim=1)

    if return_embedding:
        embedding = net.embedding(inputs, **kwargs)
        return _array(output(net.classify(embedding))), _array(embedding)
    if tta:
        outputs = [output(net(crop, **kwargs)) for crop in _five_crops(inputs)]
        return _array(torch.stack(outputs).mean(dim=0)), None
    return _array(output(net(inputs, **kwargs))), None


def _five_crops(inputs: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b c h w"]]:
    size = inputs.shape[-2:]
    height, width = (int(length * TTA_CROP) for length in size)
    bottom, right = size[0] - height, size[1] - width
    middle = centre(size[0], height, "half_even").start, centre(size[1], width, "half_even").start
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), middle]
    crops = [inputs[..., top : top + height, left : left + width] for top, left in corners]
    return [F.interpolate(crop, size=size, mode="bicubic", antialias=True) for crop in crops]


def _device_of(net: object) -> torch.device:
    parameter = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _array(tensor: Tensor) -> Float32[ndarray, "..."]:
    return tensor.float().cpu().numpy()
