"""How many directions a set of features uses: RankMe.

Promise: a function of the singular values alone, in double precision; turning or scaling the features changes nothing.
Source: Garrido et al. 2023 (RankMe), Eq. 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

RANKME_EPS = 1e-7  # as in the paper


def rankme(features: Float[Tensor, "m d"]) -> float:
    """How many directions features use: exp of the entropy of their singular values' shares; from 1 to min(m, d).

    Raises:
        ValueError: no features, or nothing but zeros.
    """
    values = torch.linalg.svdvals(features.double()) if features.numel() else features.new_zeros(0)
    if not values.numel() or values.sum() == 0:
        raise ValueError(f"features of shape {tuple(features.shape)} have no rank; they are empty or all zero.")
    shares = values / values.sum() + RANKME_EPS
    return torch.exp(-(shares * shares.log()).sum()).item()
