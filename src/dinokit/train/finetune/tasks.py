"""The three tasks: how an example is made, what is minimised, and how what was learned is judged.

Promise: a task says its own words only; the loop knows none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dinokit.images import ImageTransform
from dinokit.model import LinearHead, VisionTransformer, intermediate_tokens
from dinokit.model.dense import DenseModel, DepthRule
from dinokit.train.counter import Stream
from dinokit.train.finetune.examples import Example, MakeExample, Pair, for_classifier, for_pixels
from dinokit.train.finetune.losses import (
    IGNORED,
    SIG_WARM_UP,
    gradient_loss,
    mixed_cross_entropy,
    pixel_cross_entropy,
    sig_loss,
)
from dinokit.train.finetune.recipe import FinetuneRecipe
from dinokit.weights.heads import DensePretrained, uncropped

JUDGED_AT_ONCE = 32


class Classifier(nn.Module):
    """Backbone and linear classifier, images to logits."""

    def __init__(self, backbone: VisionTransformer, head: LinearHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        return self.head(*intermediate_tokens(self.backbone, images, self.head.num_layers))  # type: ignore[no-any-return]


Trained = Classifier | DenseModel


class TaskOf(Protocol):
    """What the loop asks of a task; `best` names the number by which a network is chosen, `up` whether more is better."""

    @property
    def best(self) -> str:
        """Name of a number of `judge`."""
        ...

    @property
    def up(self) -> bool:
        """More is better."""
        ...

    def example(self, recipe: FinetuneRecipe) -> MakeExample:
        """How a pair becomes an example."""
        ...

    def loss(self, network: nn.Module, batch: Example, step: int, recipe: FinetuneRecipe) -> Tensor:
        """Of one batch, on the network's device."""
        ...

    def judge(self, network: nn.Module, pairs: Sequence[Pair], recipe: FinetuneRecipe) -> dict[str, float]:
        """Numbers by name, over whole images."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with smoothed labels and mixup; chosen by accuracy."""

    transform: ImageTransform
    best: str = "accuracy"
    up: bool = True

    def example(self, recipe: FinetuneRecipe) -> MakeExample:
        """See `for_classifier`."""
        return for_classifier(self.transform, recipe)

    def loss(self, network: nn.Module, batch: Example, step: int, recipe: FinetuneRecipe) -> Tensor:
        """Mixup pairs each image with its neighbour in the batch; one share a step."""
        images, labels = batch
        share = 1.0
        if recipe.mixup:
            share = float(Stream(recipe.seed, "mixup").generator(step, 0).beta(recipe.mixup, recipe.mixup))
            images = share * images + (1 - share) * images.roll(1, 0)
        return mixed_cross_entropy(network(images), labels, labels.roll(1, 0), share, recipe.label_smoothing)

    def judge(self, network: nn.Module, pairs: Sequence[Pair], recipe: FinetuneRecipe) -> dict[str, float]:
        """Share of images whose class is the first."""
        transform, device = self.transform.at_size((recipe.size, recipe.size)), _device(network)
        right = 0
        for start in range(0, len(pairs), JUDGED_AT_ONCE):
            some = [pairs[i] for i in range(start, min(start + JUDGED_AT_ONCE, len(pairs)))]
            found = network(transform.batch(image for image, _ in some).to(device)).argmax(dim=1).cpu()
            right += int((found == torch.tensor([int(label) for _, label in some])).sum())
        return {"accuracy": right / len(pairs)}


@dataclass(frozen=True)
class Segmenting:
    """Cross-entropy of pixels; chosen by the mean intersection over union."""

    transform: ImageTransform
    num_classes: int
    best: str = "mIoU"
    up: bool = True

    def example(self, recipe: FinetuneRecipe) -> MakeExample:
        """See `for_pixels`; unknown pixels are 255."""
        return for_pixels(self.transform, recipe, IGNORED, self._check)

    def loss(self, network: nn.Module, batch: Example, step: int, recipe: FinetuneRecipe) -> Tensor:  # noqa: ARG002
        """Over the labelled pixels of the batch."""
        return pixel_cross_entropy(network(batch[0]).float(), batch[1].long())

    def judge(self, network: nn.Module, pairs: Sequence[Pair], recipe: FinetuneRecipe) -> dict[str, float]:
        """Over all pixels of all images together; the mean over the classes that occur."""
        pre, matrix = _dense(network, self.transform, recipe), torch.zeros(self.num_classes**2, dtype=torch.int64)
        for image, mask in pairs:
            true = torch.as_tensor(mask).long()
            self._check(true)
            found = _as_large(pre.maps(image), true).argmax(dim=0)
            known = true != IGNORED
            matrix += torch.bincount(self.num_classes * true[known] + found[known], minlength=self.num_classes**2)
        return iou_of(matrix.view(self.num_classes, self.num_classes))

    def _check(self, mask: Tensor) -> None:
        known = mask[mask != IGNORED]
        if known.numel() and not (int(known.min()) >= 0 and int(known.max()) < self.num_classes):
            raise ValueError(
                f"a mask holds classes {int(known.min())} to {int(known.max())}; {self.num_classes} count from 0, and {IGNORED} is "
                f"ignored."
            )


@dataclass(frozen=True)
class Ranging:
    """Depth: scale-invariant loss and gradients; chosen by the root of the mean squared error."""

    transform: ImageTransform
    rule: DepthRule
    best: str = "rmse"
    up: bool = False

    def example(self, recipe: FinetuneRecipe) -> MakeExample:
        """See `for_pixels`; unknown pixels are 0."""
        return for_pixels(self.transform, recipe, 0.0, lambda _: None)

    def loss(self, network: nn.Module, batch: Example, step: int, recipe: FinetuneRecipe) -> Tensor:
        """sig_loss + gradient_weight * gradient_loss."""
        found, true = network(batch[0]).float()[:, 0], batch[1].float()
        valid = self._valid(true)
        loss = sig_loss(found, true, valid, warming=step < min(SIG_WARM_UP, recipe.steps // 10))
        return loss + recipe.gradient_weight * gradient_loss(found, true, valid) if recipe.gradient_weight else loss

    def judge(self, network: nn.Module, pairs: Sequence[Pair], recipe: FinetuneRecipe) -> dict[str, float]:
        """Means of the images' errors; images without a valid pixel are passed over."""
        pre, rows = _dense(network, self.transform, recipe), []
        for image, depth in pairs:
            true = torch.as_tensor(depth).float()
            valid = self._valid(true)
            if not valid.any():
                continue
            found = _as_large(pre.maps(image), true)[0].clamp(self.rule.nearest, self.rule.farthest)
            p, t = found[valid].double(), true[valid].double()
            ratio = torch.maximum(p / t, t / p)
            rows.append([(p - t).square().mean().sqrt(), ((p - t).abs() / t).mean(), (ratio < 1.25).double().mean()])
        if not rows:
            raise ValueError(
                f"none of {len(pairs)} images has a depth in {self.rule.nearest:g} to {self.rule.farthest:g} to judge by."
            )
        return dict(zip(("rmse", "abs_rel", "delta1"), np.mean(rows, axis=0).tolist(), strict=True))

    def _valid(self, true: Tensor) -> Tensor:
        return (true >= self.rule.nearest) & (true <= self.rule.farthest)


def iou_of(matrix: Int64[Tensor, "c c"]) -> dict[str, float]:
    """Mean intersection over union of the classes that occur, and the share of pixels that are right."""
    counts = matrix.double()
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return {"mIoU": (hits / union).nanmean().item(), "pixel_accuracy": (hits.sum() / counts.sum()).item()}


def _dense(network: nn.Module, transform: ImageTransform, recipe: FinetuneRecipe) -> DensePretrained:
    assert isinstance(network, DenseModel)
    return DensePretrained(model=network, transform=uncropped(transform, recipe.size))


def _as_large(maps: Float[Tensor, "o h w"], like: Tensor) -> Float[Tensor, "o h2 w2"]:
    if maps.shape[1:] == like.shape:
        return maps
    return F.interpolate(maps[None], tuple(like.shape), mode="bilinear", align_corners=False)[0]


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
