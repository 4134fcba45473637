"""DPT: tokens of four blocks reassembled into maps of four resolutions, and fused from coarse to fine.

Parameters are named as in Meta's released depth heads. Registers are left out before anything is reassembled.
Source: Ranftl et al. 2021 (DPT), section 3; facebookresearch/dinov2, eval/depth/models/decode_heads/dpt_head.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.model.dense.spec import DenseSpec
from dinokit.tokens import Tokens

CHANNELS = 256
DEPTH_CHANNELS = 32


class Named(nn.Module):
    """A convolution under the name `conv`, which is where the released files have it."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """The convolution."""
        return self.conv(x)  # type: ignore[no-any-return]


class Reassemble(nn.Module):
    """Tokens of four blocks as maps of 4, 2, 1 and 1/2 times the patches' resolution.

    Each patch first takes up its class token ("project" in the paper).
    """

    def __init__(self, embed_dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.projects = nn.ModuleList(Named(embed_dim, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, 4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, 2, 1),
            ]
        )
        self.readout_projects = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * embed_dim, embed_dim), nn.GELU()) for _ in widths
        )

    def forward(self, levels: Sequence[Tokens]) -> list[Float[Tensor, "b c h w"]]:
        """Finest first."""
        found = []
        for tokens, readout, project, resize in zip(
            levels, self.readout_projects, self.projects, self.resize_layers, strict=True
        ):
            patches = tokens.patches
            read = readout(torch.cat([patches, tokens.cls[:, None].expand_as(patches)], dim=-1))
            found.append(resize(project(read.transpose(1, 2).unflatten(2, tokens.grid))))
        return found


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Named(channels, channels, 3, bias=False)
        self.conv2 = Named(channels, channels, 3, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))  # type: ignore[no-any-return]


class Fusion(nn.Module):
    """What has been fused so far, plus a finer map, refined and enlarged twice; the first of them has no finer map to add."""

    def __init__(self, channels: int, *, first: bool) -> None:
        super().__init__()
        self.project = Named(channels, channels, 1)
        self.res_conv_unit1 = None if first else Residual(channels)
        self.res_conv_unit2 = Residual(channels)

    def forward(
        self, x: Float[Tensor, "b c h w"], finer: Float[Tensor, "b c h2 w2"] | None = None
    ) -> Float[Tensor, "b c h3 w3"]:
        """Twice as high and wide as `x`."""
        if finer is not None:
            assert self.res_conv_unit1 is not None
            if finer.shape[2:] != x.shape[2:]:  # grids of an odd size
                finer = F.interpolate(finer, x.shape[2:], mode="bilinear", align_corners=False)
            x = x + self.res_conv_unit1(finer)
        return self.project(_doubled(self.res_conv_unit2(x)))  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """From tokens to one map of 256 channels at 8 times the patches' resolution."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.spec = spec
        d = spec.embed_dim
        if d % 8:
            raise ValueError(f"DPT divides the width of the network by 8; {d} is no multiple of it.")
        widths = (d // 8, d // 4, d // 2, d)
        self.reassemble_blocks = Reassemble(d, widths)
        self.convs = nn.ModuleList(Named(width, CHANNELS, 3, bias=False) for width in widths)
        self.fusion_blocks = nn.ModuleList(Fusion(CHANNELS, first=i == 0) for i in range(4))
        self.project = Named(CHANNELS, CHANNELS, 3)

    def fused(self, levels: Sequence[Tokens]) -> Float[Tensor, "b c h w"]:
        """The map, after a ReLU."""
        maps = [conv(level) for conv, level in zip(self.convs, self.reassemble_blocks(levels), strict=True)]
        out = self.fusion_blocks[0](maps[3])
        for fusion, finer in zip(list(self.fusion_blocks)[1:], (maps[2], maps[1], maps[0]), strict=True):
            out = fusion(out, finer)
        return F.relu(self.project(out))


class DepthEnd(nn.Module):
    """Two convolutions with an enlargement between them, ReLU, and a last one; numbered as in the released files."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.head = nn.ModuleDict(
            {
                "0": nn.Conv2d(CHANNELS, CHANNELS // 2, 3, padding=1),
                "2": nn.Conv2d(CHANNELS // 2, DEPTH_CHANNELS, 3, padding=1),
                "4": nn.Conv2d(DEPTH_CHANNELS, outputs, 1),
            }
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Twice as high and wide."""
        return self.head["4"](F.relu(self.head["2"](_doubled(self.head["0"](x)))))  # type: ignore[no-any-return]


class DptDepth(Trunk):
    """Depth, by regression as released or by bins, at 16 times the patches' resolution."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__(spec)
        self.conv_depth = DepthEnd(spec.num_outputs)
        if spec.num_outputs == 1:
            nn.init.constant_(self.conv_depth.head["4"].bias, spec.rule.start)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tokens]) -> Float[Tensor, "b 1 h w"]:
        """Metres."""
        return self.spec.rule(self.conv_depth(self.fused(levels)))


class DptSegmentation(Trunk):
    """Scores of classes at 8 times the patches' resolution; the last layer is named as mmsegmentation does."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__(spec)
        self.conv_seg = nn.Conv2d(CHANNELS, spec.num_outputs, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tokens]) -> Float[Tensor, "b classes h w"]:
        """Scores."""
        return self.conv_seg(self.fused(levels))  # type: ignore[no-any-return]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
