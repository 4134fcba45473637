"""A network for another image size: its position table resampled once, everything else shared."""

from __future__ import annotations

import torch
from torch import nn

from dinokit.config import PositionRule
from dinokit.model.posembed import resample
from dinokit.model.unfilled import unfilled
from dinokit.model.vit import VisionTransformer


def resize_positions(
    model: VisionTransformer, image_size: tuple[int, int], rule: PositionRule | None = None
) -> VisionTransformer:
    """A model with its position table resampled once to `image_size` (height, width) in pixels.

    All other parameters are shared with `model`. At this size the new model runs without resampling, which is what
    exporters need. `rule` defaults to the model's own.

    Raises:
        ValueError: `model` is another form of the network (`dinokit.repair`), which would be lost.
    """
    if type(model) is not VisionTransformer:
        raise ValueError(
            f"a {type(model).__name__} can't be resized or exported; resize the network first, then repair it."
        )
    config = model.config.replace(image_size=image_size, position=rule or model.config.position)
    with unfilled():
        resized = VisionTransformer(config)
    state = dict(model.named_parameters())
    frozen = {name: not parameter.requires_grad for name, parameter in state.items()}
    with torch.no_grad():
        table = resample(model.pos_embed, model.config.grid, config.grid, config.position).clone()
    state["pos_embed"] = nn.Parameter(table)
    resized.load_state_dict(state, strict=True, assign=True)
    # Assigning gives the shared parameters the flags of the empty network, in `model` too.
    for name, parameter in resized.named_parameters():
        parameter.requires_grad_(not frozen[name])
    return resized.train(model.training)
