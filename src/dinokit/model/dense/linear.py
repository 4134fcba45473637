"""Linear dense heads: one 1 x 1 convolution of token maps. Parameters are named as in Meta's released files.

Source: facebookresearch/dinov2, eval/segmentation/models/decode_heads/linear_head.py and eval/depth/models/decode_heads/linear_head.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.model.dense.spec import DenseSpec
from dinokit.tokens import Tokens

UPSAMPLED = 4


class LinearSegmentation(nn.Module):
    """Batch norm over the patch maps of all levels side by side, then a linear layer; a score a class and patch."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.embed_dim * len(spec.blocks)
        self.bn = nn.BatchNorm2d(width)
        self.conv_seg = nn.Conv2d(width, spec.num_outputs, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tokens]) -> Float[Tensor, "b classes gh gw"]:
        """Scores at the patches' resolution."""
        maps = torch.cat([tokens.patch_map for tokens in levels], dim=1)
        return self.conv_seg(self.bn(maps))  # type: ignore[no-any-return]


class LinearDepth(nn.Module):
    """A linear layer on patches with the class token beside each, to bins (or one number), enlarged four times, to depth."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv_depth = nn.Conv2d(2 * spec.embed_dim * len(spec.blocks), spec.num_outputs, 1)
        nn.init.normal_(self.conv_depth.weight, std=0.01)
        start = spec.rule.start if spec.num_outputs == 1 else 0.0
        nn.init.constant_(self.conv_depth.bias, start)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tokens]) -> Float[Tensor, "b 1 h w"]:
        """Depth in metres at four times the patches' resolution."""
        maps = torch.cat([part for tokens in levels for part in (tokens.patch_map, _spread_class(tokens))], dim=1)
        # the released code enlarges first; both are linear, and weights of the interpolation sum to 1, so the order is free
        scores = self.conv_depth(maps)
        size = UPSAMPLED * maps.shape[2], UPSAMPLED * maps.shape[3]
        return self.spec.rule(F.interpolate(scores, size, mode="bilinear", align_corners=False))


def _spread_class(tokens: Tokens) -> Float[Tensor, "b d gh gw"]:
    return tokens.cls[:, :, None, None].expand(-1, -1, *tokens.grid)
