"""Distillation of features: tokens of a student, through an adapter, against those of a frozen teacher.

Promise: gradients reach the student and the adapter only; registers are not compared, so either side may have any number.
Source: Wei et al. 2022 (Feature Distillation): standardised targets, smooth L1 with beta 2, a linear adapter. Chen et al. 2025
(PH-Reg): cosine and squared error together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.train.numerics import at_least_float32, exactly

FeatureLoss = Literal["smooth_l1", "mse", "cosine", "cosine_mse"]
AdapterKind = Literal["linear", "mlp", "none"]
BETA = 2.0  # from here on an error counts linearly
EPS = 1e-6


class Features(NamedTuple):
    """Class tokens and patches of some crops; None where they are not compared."""

    classes: Float[Tensor, "crops d"] | None = None
    patches: Float[Tensor, "crops n d"] | None = None


class FeatureTerms(NamedTuple):
    """The loss of class tokens and that of patches; None where they are not compared."""

    classes: Float[Tensor, ""] | None
    patches: Float[Tensor, ""] | None


def standardised(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Each token less its mean, over its standard deviation: channels of any size weigh alike."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def feature_loss(
    student: Float[Tensor, "*n d"], teacher: Float[Tensor, "*n d"], kind: FeatureLoss = "smooth_l1"
) -> Float[Tensor, ""]:
    """How far tokens are from the teacher's t, the mean over tokens and, but for the cosine, over channels.

    With u = standardised(t): "smooth_l1" (s - u)^2 / 2 beta up to |s - u| = beta, |s - u| - beta / 2 from there on; "mse" (s - u)^2;
    "cosine" 1 - cos(s, t); "cosine_mse" 1 - cos(s, t) + (s - t)^2.
    """
    with exactly(student):
        s, t = at_least_float32(student), at_least_float32(teacher.detach())
        match kind:
            case "smooth_l1":
                return F.smooth_l1_loss(s, standardised(t), beta=BETA)
            case "mse":
                return F.mse_loss(s, standardised(t))
        loss = (1 - F.cosine_similarity(s, t, dim=-1, eps=EPS)).mean()
        return loss + F.mse_loss(s, t) if kind == "cosine_mse" else loss


def feature_terms(student: Features, teacher: Features, kind: FeatureLoss = "smooth_l1") -> FeatureTerms:
    """`feature_loss` of what the student gives."""

    def of(s: Tensor | None, t: Tensor | None) -> Tensor | None:
        return None if s is None or t is None else feature_loss(s, t, kind)

    return FeatureTerms(of(student.classes, teacher.classes), of(student.patches, teacher.patches))


class Adapter(nn.Module):
    """From the student's width to the teacher's; one map for class tokens and one for patches, where they are compared.

    "mlp" has one hidden layer of the teacher's width.
    """

    def __init__(
        self,
        embed_dim: int,
        teacher_dim: int,
        kind: AdapterKind = "linear",
        *,
        classes: bool = True,
        patches: bool = True,
    ) -> None:
        super().__init__()
        self.teacher_dim = teacher_dim
        self.classes = _map(embed_dim, teacher_dim, kind) if classes else None
        self.patches = _map(embed_dim, teacher_dim, kind) if patches else None

    def forward(self, classes: Float[Tensor, "crops d"], patches: Float[Tensor, "crops n d"]) -> Features:
        """In the teacher's width."""
        return Features(
            None if self.classes is None else self.classes(classes),
            None if self.patches is None else self.patches(patches),
        )


def adapter_between(
    embed_dim: int, teacher_dim: int, kind: AdapterKind, *, classes: bool = True, patches: bool = True
) -> Adapter | None:
    """An adapter, or none, where tokens are to be compared as they are.

    Raises:
        ValueError: "none", and the widths differ.
    """
    if kind != "none":
        return Adapter(embed_dim, teacher_dim, kind, classes=classes, patches=patches)
    if embed_dim != teacher_dim:
        raise ValueError(
            f"the student is {embed_dim} wide and the teacher {teacher_dim}: without adapter they can't be compared; "
            f"set distill.adapter=linear."
        )
    return None


def _map(embed_dim: int, teacher_dim: int, kind: AdapterKind) -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(embed_dim, teacher_dim)]
    if kind == "mlp":
        layers += [nn.GELU(), nn.Linear(teacher_dim, teacher_dim)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def on_grid(
    patches: Float[Tensor, "b n d"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "b m d"]:
    """Patches of one grid on another: bilinear, with antialiasing where the new one is coarser; as they are on the same one."""
    if grid == new_grid:
        return patches
    maps = at_least_float32(patches).transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(maps, size=new_grid, mode="bilinear", antialias=True, align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(patches.dtype)


def whole_patches(crops: Float[Tensor, "b c h w"], patch_size: int, scale: int = 1) -> Float[Tensor, "b c hh ww"]:
    """Crops at `scale` times their size, or the nearest size that whole patches cover; bicubic."""
    size = [max(round(side * scale / patch_size), 1) * patch_size for side in crops.shape[-2:]]
    if size == list(crops.shape[-2:]):
        return crops
    return F.interpolate(crops, size=size, mode="bicubic", antialias=True, align_corners=False)
