"""Gram anchoring: the student keeps the similarities between an image's patches that a frozen network sees.

Promise: features may turn and change as long as what is alike stays alike; gradients reach the student only.
Source: Simeoni et al. 2025 (DINOv3), section 4.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinokit.train.numerics import at_least_float32, exactly

EPS = 1e-12


def gram(patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n n"]:
    """Cosines between all patches of an image."""
    unit = F.normalize(at_least_float32(patches), dim=-1, eps=EPS)
    return unit @ unit.transpose(1, 2)


def gram_loss(student: Float[Tensor, "b n d"], anchor: Float[Tensor, "b n e"]) -> Float[Tensor, ""]:
    """|| X_S X_S' - X_G X_G' ||_F^2 / n^2 with rows of length 1, averaged over images; the widths may differ.

    The paper's formula is without n^2; its code takes the mean over entries, as here, so that a weight suits any grid.
    """
    with exactly(student):
        return F.mse_loss(gram(student), gram(anchor.detach()))
