"""Meta's torch.hub face: `dinov2_vits14` to `dinov2_vitg14_reg_lc`, with the outputs and state dicts of facebookresearch/dinov2.

`load(name)` stands for `torch.hub.load("facebookresearch/dinov2", name)`; `wrap` gives the face to a model that is there already.
What differs from Meta's code, and why: docs/torch-hub.md.
"""

from dinokit.compat.hub.entry import (
    ENTRY_POINTS,
    dinov2_vitb14,
    dinov2_vitb14_lc,
    dinov2_vitb14_reg,
    dinov2_vitb14_reg_lc,
    dinov2_vitg14,
    dinov2_vitg14_lc,
    dinov2_vitg14_reg,
    dinov2_vitg14_reg_lc,
    dinov2_vitl14,
    dinov2_vitl14_lc,
    dinov2_vitl14_reg,
    dinov2_vitl14_reg_lc,
    dinov2_vits14,
    dinov2_vits14_lc,
    dinov2_vits14_reg,
    dinov2_vits14_reg_lc,
    load,
    wrap,
)
from dinokit.compat.hub.net import HubBackbone, HubClassifier

__all__ = [
    "ENTRY_POINTS",
    "HubBackbone",
    "HubClassifier",
    "dinov2_vitb14",
    "dinov2_vitb14_lc",
    "dinov2_vitb14_reg",
    "dinov2_vitb14_reg_lc",
    "dinov2_vitg14",
    "dinov2_vitg14_lc",
    "dinov2_vitg14_reg",
    "dinov2_vitg14_reg_lc",
    "dinov2_vitl14",
    "dinov2_vitl14_lc",
    "dinov2_vitl14_reg",
    "dinov2_vitl14_reg_lc",
    "dinov2_vits14",
    "dinov2_vits14_lc",
    "dinov2_vits14_reg",
    "dinov2_vits14_reg_lc",
    "load",
    "wrap",
]
