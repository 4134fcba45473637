"""Backbone and heads: what a student is, and its teacher; their passes over a batch of crops.

Promise: crops of two sizes go through the blocks side by side, and only tokens that a loss reads are normed and projected.
Source: Oquab et al. 2023, section 4; Zhou et al. 2022 (iBOT), Fig. 3; dinov2/train/ssl_meta_arch.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dinokit.model import VisionTransformer
from dinokit.train.counter import Stream
from dinokit.train.crossentropy import Projection
from dinokit.train.droppath import Subsets, draw_subsets, run_blocks
from dinokit.train.heads import ProjectionHead
from dinokit.train.masking import Masks


@dataclass(frozen=True)
class Batch:
    """Crops of b images: two global ones of each and any number of local ones, crop by crop; masks of the global crops.

    `samples` are the images' ids, which the random choices of a step go by.
    """

    global_crops: Float[Tensor, "global c h w"]
    local_crops: Float[Tensor, "local c kh kw"]
    masks: Masks
    samples: Int64[Tensor, " b"]

    def __post_init__(self) -> None:
        b = len(self.samples)
        if len(self.global_crops) != 2 * b or (b and len(self.local_crops) % b) or len(self.masks.masks) != 2 * b:
            raise ValueError(
                f"a batch of {b} images has {len(self.global_crops)} global crops, {len(self.local_crops)} local ones and "
                f"{len(self.masks.masks)} masks; it needs two global crops and masks an image, and as many local ones each."
            )

    @property
    def num_local(self) -> int:
        """Local crops an image."""
        return len(self.local_crops) // max(len(self.samples), 1)


class StudentOutputs(NamedTuple):
    """What the losses read: class tokens of the global crops after the final norm, and scores before their last product."""

    class_tokens: Float[Tensor, "global d"]
    global_scores: Projection
    local_scores: Projection
    patch_scores: Projection


class TeacherOutputs(NamedTuple):
    """Logits of the global crops' class tokens, and of the patches that the student does not see."""

    class_logits: Float[Tensor, "global k"]
    patch_logits: Float[Tensor, "m kp"]


class Network(nn.Module):
    """A backbone and its heads; without `ibot_head`, one head serves class tokens and patches."""

    def __init__(
        self, backbone: VisionTransformer, dino_head: ProjectionHead, ibot_head: ProjectionHead | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head

    @property
    def patch_head(self) -> ProjectionHead:
        """The head of masked patches."""
        return self.dino_head if self.ibot_head is None else self.ibot_head

    def forward(self, batch: Batch, subsets: tuple[Subsets, Subsets] | None = None) -> StudentOutputs:
        """The student's pass: global crops masked, local ones whole; `subsets` of either for stochastic depth."""
        backbone, masks = self.backbone, batch.masks
        groups = [backbone.embed(batch.global_crops, masks.masks)]
        if len(batch.local_crops):
            groups.append(backbone.embed(batch.local_crops))
        chosen = subsets or ([None] * backbone.config.depth,) * 2
        sequences = run_blocks(backbone, groups, chosen)
        tokens = backbone.norm(
            torch.cat([*(x[:, 0] for x in sequences), _patches_at(sequences[0], backbone, masks.indices)])
        )
        sizes = [len(batch.global_crops), len(batch.local_crops), len(masks.indices)]
        if self.ibot_head is None:
            features, prototypes = self.dino_head.project(tokens)
            scores = [Projection(part, prototypes) for part in features.split(sizes)]
        else:
            features, prototypes = self.dino_head.project(tokens[: sizes[0] + sizes[1]])
            scores = [Projection(part, prototypes) for part in features.split(sizes[:2])]
            scores.append(self.ibot_head.project(tokens[sizes[0] + sizes[1] :]))
        return StudentOutputs(tokens[: sizes[0]], *scores)

    @torch.no_grad()
    def teach(self, batch: Batch) -> TeacherOutputs:
        """The teacher's pass: global crops, nothing masked. Evaluation mode is up to whoever holds the teacher."""
        backbone = self.backbone
        (x,) = run_blocks(backbone, [backbone.embed(batch.global_crops)], [[None] * backbone.config.depth])
        classes = self.dino_head(backbone.norm(x[:, 0]))
        return TeacherOutputs(classes, self.patch_head(backbone.norm(_patches_at(x, backbone, batch.masks.indices))))


def _patches_at(sequence: Tensor, backbone: VisionTransformer, indices: Tensor) -> Tensor:
    """The patch tokens at flat indices over (crop, patch)."""
    return sequence[:, backbone.config.num_prefix_tokens :].flatten(0, 1).index_select(0, indices)


def crop_subsets(
    seed: int, step: int, batch: Batch, rates: tuple[float, ...], together: int | None = None
) -> tuple[Subsets, Subsets]:
    """Subsets for stochastic depth of the global and of the local crops; see `draw_subsets`."""
    found = []
    for name, count in (("global", 2), ("local", batch.num_local)):
        crops = (batch.samples * count + torch.arange(count, device=batch.samples.device)[:, None]).flatten()
        drawn = draw_subsets(Stream(seed, f"drop path {name}"), step, crops, rates, together)
        found.append(drawn)
    return found[0], found[1]
