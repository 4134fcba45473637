"""ONNX export: one file for one image size, its position table baked in, so that no resize is left in the graph.

Antialiased bicubic has no ONNX operator, which is why exporting transformers' models fails at other sizes than the trained one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.errors import MissingExtraError
from dinokit.model.resize import resize_positions

if TYPE_CHECKING:
    from dinokit.model.vit import VisionTransformer


class TokenSequence(nn.Module):
    """The plain tensor of a network's tokens, which is what graph formats can give."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        """All tokens after the final norm: class token, registers, patches."""
        return self.model(images).sequence  # type: ignore[no-any-return]


def export_onnx(
    model: VisionTransformer, path: str | Path, image_size: tuple[int, int] | None = None, *, dynamic_batch: bool = True
) -> Path:
    """Write `model` as ONNX for images of `image_size` (height, width), by default the trained size.

    Input `images` (b, c, h, w), normalised; output `tokens` (b, t, d) after the final norm, in the order [class, registers,
    patches]. Weights of more than 2 GB go to a file beside `path`. Needs the extra `dinokit[onnx]`.

    Raises:
        ImportError: the extra is not installed.
        ValueError: the model is in training mode.
    """
    try:
        import onnxscript  # noqa: F401 - what torch.onnx needs, asked for here so that the message is ours
    except ImportError as error:
        raise MissingExtraError("ONNX export needs more packages: pip install 'dinokit[onnx]'.") from error
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before exporting it.")
    image_size = image_size or model.config.image_size
    fixed = TokenSequence(resize_positions(model, image_size)).eval()
    # Two images: a batch of one would be specialised away.
    example = torch.zeros(2, model.config.num_channels, *image_size, dtype=model.cls_token.dtype)
    batch = {0: torch.export.Dim("batch", min=1, max=4096)} if dynamic_batch else None
    with torch.no_grad():
        program = torch.onnx.export(
            fixed,
            (example,),
            input_names=["images"],
            output_names=["tokens"],
            dynamic_shapes=(batch,) if batch else None,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
    return Path(path)
