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
from dinokit.train.distill import Adapter, Features
from dinokit.train.droppath import Subsets, draw_subsets, run_blocks
from dinokit.train.heads import ProjectionHead
from dinokit.train.masking import Masks


@dataclass(frozen=True)
class Batch:
    """Crops of b images: two global ones of each and any number of local ones, crop by crop; masks of the global crops.

    `samples` are the images' ids, which the random choices of a step go by. Without `hide` the student sees masked patches, too:
    masks only say which ones are compared.
    """

    global_crops: Float[Tensor, "global c h w"]
    local_crops: Float[Tensor, "local c kh kw"]
    masks: Masks
    samples: Int64[Tensor, " b"]
    hide: bool = True

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
    """What the losses read: class tokens of the global crops after the final norm, and scores before their last product.

    `patches` are those of the global crops, all and normed, and `features` tokens in a teacher's width; of dense networks only.
    """

    class_tokens: Float[Tensor, "global d"]
    global_scores: Projection | None
    local_scores: Projection | None
    patch_scores: Projection | None
    patches: Float[Tensor, "global n d"] | None = None
    features: Features = Features()


class TeacherOutputs(NamedTuple):
    """Logits of the global crops' class tokens, and of the patches that the student does not see."""

    class_logits: Float[Tensor, "global k"]
    patch_logits: Float[Tensor, "m kp"]


class Network(nn.Module):
    """A backbone and its heads; without `ibot_head`, one head serves class tokens and patches, and without any, none.

    `dense` networks give all patches of the global crops, too, and tokens in a teacher's width, to which `adapter` maps them.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        dino_head: ProjectionHead | None = None,
        ibot_head: ProjectionHead | None = None,
        adapter: Adapter | None = None,
        dense: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head
        self.adapter = adapter
        self.dense = dense

    @property
    def patch_head(self) -> ProjectionHead | None:
        """The head of masked patches."""
        return self.dino_head if self.ibot_head is None else self.ibot_head

    def forward(self, batch: Batch, subsets: tuple[Subsets, Subsets] | None = None) -> StudentOutputs:
        """The student's pass: global crops masked, local ones whole; `subsets` of either for stochastic depth."""
        backbone, masks = self.backbone, batch.masks
        groups = [backbone.embed(batch.global_crops, masks.masks if batch.hide else None)]
        if len(batch.local_crops):
            groups.append(backbone.embed(batch.local_crops))
        chosen = subsets or ([None] * backbone.config.depth,) * 2
        sequences = run_blocks(backbone, groups, chosen)
        tokens = backbone.norm(
            torch.cat([*(x[:, 0] for x in sequences), _patches_at(sequences[0], backbone, masks.indices)])
        )
        classes = tokens[: len(batch.global_crops)]
        scores = self._scores(tokens, [len(batch.global_crops), len(batch.local_crops), len(masks.indices)])
        if not self.dense:
            return StudentOutputs(classes, *scores)
        patches = backbone.norm(sequences[0][:, backbone.config.num_prefix_tokens :])
        features = Features(classes, patches) if self.adapter is None else self.adapter(classes, patches)
        return StudentOutputs(classes, *scores, patches, features)

    def _scores(
        self, tokens: Float[Tensor, "t d"], sizes: list[int]
    ) -> tuple[Projection | None, Projection | None, Projection | None]:
        """Of class tokens of global and of local crops, and of masked patches, so many of each."""
        if self.dino_head is None:
            return None, None, None
        if self.ibot_head is None:
            features, prototypes = self.dino_head.project(tokens)
            of_global, of_local, of_patches = (Projection(part, prototypes) for part in features.split(sizes))
            return of_global, of_local, of_patches
        features, prototypes = self.dino_head.project(tokens[: sizes[0] + sizes[1]])
        of_global, of_local = (Projection(part, prototypes) for part in features.split(sizes[:2]))
        return of_global, of_local, self.ibot_head.project(tokens[sizes[0] + sizes[1] :])

    @torch.no_grad()
    def teach(self, batch: Batch) -> TeacherOutputs:
        """The teacher's pass: global crops, nothing masked. Evaluation mode is up to whoever holds the teacher."""
        backbone = self.backbone
        (x,) = run_blocks(backbone, [backbone.embed(batch.global_crops)], [[None] * backbone.config.depth])
        assert self.dino_head is not None
        assert self.patch_head is not None
        classes = self.dino_head(backbone.norm(x[:, 0]))
        return TeacherOutputs(classes, self.patch_head(backbone.norm(_patches_at(x, backbone, batch.masks.indices))))


def _patches_at(sequence: Tensor, backbone: VisionTransformer, indices: Tensor) -> Tensor:
    """The patch tokens at flat indices over (crop, patch)."""
    return sequence[:, backbone.config.num_prefix_tokens :].flatten(0, 1).index_select(0, indices)


def crop_subsets(
    seed: int, step: int, batch: Batch, rates: tuple[float, ...], together: int | None = None
) -> tuple[Subsets, Subsets]:
    """Subsets for stochastic depth of the global and of the local crops; see `draw_subsets`."""
    found: list[Subsets] = []
    for name, count in (("global", 2), ("local", batch.num_local)):
        if not count:
            found.append([None] * len(rates))
            continue
        crops = (batch.samples * count + torch.arange(count, device=batch.samples.device)[:, None]).flatten()
        drawn = draw_subsets(Stream(seed, f"drop path {name}"), step, crops, rates, together)
        found.append(drawn)
    return found[0], found[1]
