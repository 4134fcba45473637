"""Frozen networks beside the average teacher: what they say of a batch.

Promise: no state, no gradient; what they say is a function of (seed, step, crops), so that nothing of them is in a checkpoint.
Source: Oquab et al. 2023, section 5 (distillation); Simeoni et al. 2025 (Gram anchoring); Chen et al. 2025 (denoised targets).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dinokit.model import VisionTransformer
from dinokit.repair.cosmetic import Denoised
from dinokit.train.denoise import draw_shifts
from dinokit.train.distill import Features, on_grid, whole_patches
from dinokit.train.network import Batch, Network
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.step import Objective, Shown


@dataclass(frozen=True)
class Guides:
    """`heads` takes the average teacher's place, `teacher` gives tokens to be learned, `anchor` similarities to be kept."""

    heads: Network | None = None
    teacher: VisionTransformer | None = None
    anchor: VisionTransformer | None = None

    @property
    def width(self) -> int | None:
        """Of the tokens to be learned."""
        return None if self.teacher is None else self.teacher.config.embed_dim

    def to(self, device: torch.device) -> Guides:
        """The same, moved in place; in evaluation mode, without gradients."""
        for network in (self.heads, self.teacher, self.anchor):
            if network is not None:
                network.to(device).eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def show(self, batch: Batch, recipe: TrainingRecipe, objective: Objective, step: int) -> Shown:
        """What the losses with a weight need, of the batch's global crops."""
        crops, p = batch.global_crops, recipe.model.patch_size
        grid = (crops.shape[-2] // p, crops.shape[-1] // p)
        features, anchor = Features(), None
        if self.teacher is not None:
            found = tokens_of(self.teacher, crops, grid, recipe, step)
            features = Features(
                found.classes if objective.class_feature_weight else None,
                found.patches if objective.patch_feature_weight else None,
            )
        if self.anchor is not None and objective.gram_weight:
            anchor = patches_of(self.anchor, crops, grid, recipe.gram.scale)
        return Shown(features, anchor)


def tokens_of(
    teacher: VisionTransformer,
    crops: Float[Tensor, "b c h w"],
    grid: tuple[int, int],
    recipe: TrainingRecipe,
    step: int,
) -> Features:
    """A teacher's class tokens and patches on the student's grid; of shifted and mirrored images, where the recipe says so."""
    d, pixels = recipe.distill, whole_patches(crops, teacher.config.patch_size)
    if d.shifts:
        shifts = draw_shifts(
            recipe.seed, step, d.shifts, teacher.grid_of(pixels.shape[-2], pixels.shape[-1]), d.shift_share
        )
        found = Denoised(teacher, shifts=shifts, flip=d.mirrored)(pixels)
    else:
        found = teacher(pixels)
    return Features(found.cls, on_grid(found.patches, found.grid, grid))


def patches_of(
    network: VisionTransformer, crops: Float[Tensor, "b c h w"], grid: tuple[int, int], scale: int = 1
) -> Float[Tensor, "b n d"]:
    """A network's patches of crops enlarged `scale` times, brought to the student's grid."""
    found = network(whole_patches(crops, network.config.patch_size, scale))
    return on_grid(found.patches, found.grid, grid)


NOBODY = Guides()
