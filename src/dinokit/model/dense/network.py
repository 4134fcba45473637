"""A backbone with a dense head: images of any size to scores or depth of every pixel.

Promise: the head sees class and patch tokens only, so that any backbone of its width takes it, with registers or without.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.model.capture import intermediate_tokens
from dinokit.model.dense.dpt import DptDepth, DptSegmentation
from dinokit.model.dense.linear import LinearDepth, LinearSegmentation
from dinokit.model.dense.spec import DenseSpec
from dinokit.model.vit import VisionTransformer
from dinokit.tokens import Tokens

DenseHead = LinearSegmentation | LinearDepth | DptSegmentation | DptDepth


def build_head(spec: DenseSpec) -> DenseHead:
    """A head with new parameters, drawn from PyTorch's generator."""
    if spec.task == "segmentation":
        return DptSegmentation(spec) if spec.kind == "dpt" else LinearSegmentation(spec)
    return DptDepth(spec) if spec.kind == "dpt" else LinearDepth(spec)


class DenseModel(nn.Module):
    """Backbone and head. A form of the network (fast, repaired) serves as a backbone, too."""

    def __init__(self, backbone: VisionTransformer, head: DenseHead) -> None:
        super().__init__()
        config, spec = backbone.config, head.spec
        if spec.embed_dim != config.embed_dim or max(spec.blocks) >= config.depth:
            raise ValueError(
                f"the head reads blocks {list(spec.blocks)} of a network {spec.embed_dim} wide; this one has {config.depth} blocks and "
                f"is {config.embed_dim} wide. Take a head that was made for it."
            )
        self.backbone = backbone
        self.head = head

    def levels(self, images: Float[Tensor, "b c h w"]) -> tuple[Tokens, ...]:
        """Tokens of the blocks that the head reads, in its order."""
        spec = self.head.spec
        wanted = sorted(set(spec.blocks))
        found = dict(zip(wanted, intermediate_tokens(self.backbone, images, wanted, norm=spec.normed), strict=True))
        return tuple(found[index] for index in spec.blocks)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        """Scores of classes, or depth in metres (one channel), for each pixel.

        Sides that are no multiple of the patch are padded around with zeros (the mean colour), whose part is cut off again.
        """
        padded, (top, left) = pad_to_patches(images, self.backbone.config.patch_size)
        maps = self.head(self.levels(padded))
        whole = F.interpolate(maps, padded.shape[2:], mode="bilinear", align_corners=False)
        found: Tensor = whole[:, :, top : top + images.shape[2], left : left + images.shape[3]]
        return found


def pad_to_patches(
    images: Float[Tensor, "b c h w"], patch_size: int
) -> tuple[Float[Tensor, "b c h2 w2"], tuple[int, int]]:
    """Zeros around images up to whole patches, the smaller half above and left; and how many rows and columns those are."""
    rows, columns = (-side % patch_size for side in images.shape[2:])
    before = rows // 2, columns // 2
    if not rows and not columns:
        return images, before
    return F.pad(images, (before[1], columns - before[1], before[0], rows - before[0])), before
