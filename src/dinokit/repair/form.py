"""`Form`: a network that shares the parameters of another one and differs in how its blocks run.

Promise: the network that it came from is not touched: no hook, no state, no flag; it gives the same bits before and after.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinokit.config import ViTConfig
from dinokit.model import VisionTransformer
from dinokit.model.layers import Block
from dinokit.model.unfilled import unfilled


class Form(VisionTransformer):
    """Base of the repaired forms. Parameters are those of `model`, shared; `added_registers` zero tokens follow its registers."""

    def __init__(self, model: VisionTransformer, *, added_registers: int = 0) -> None:
        config = model.config.replace(num_register_tokens=model.config.num_register_tokens + added_registers)
        with unfilled():
            super().__init__(config)
        self._share(model, config, added_registers)

    def _share(self, model: VisionTransformer, config: ViTConfig, added: int) -> None:
        self.config = config
        for name, module in model.named_children():
            setattr(self, name, module)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, parameter)
        if added:
            zeros = model.register_tokens.new_zeros(1, added, config.embed_dim)
            extended = torch.cat([model.register_tokens.detach(), zeros], dim=1)
            self.register_tokens = nn.Parameter(extended, requires_grad=False)
        self.checkpoint_options = model.checkpoint_options
        self.train(model.training)

    @property
    def num_passes(self) -> int:
        """Forward passes of the network in one of this form."""
        return 1

    def block(self, index: int) -> Block:
        """Block `index`."""
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block


def robust_outliers(norms: Tensor, factor: float) -> Tensor:
    """Which tokens (b n) have a norm above `factor` times the median of their image; a rule that needs no calibration."""
    return norms > factor * norms.median(dim=-1, keepdim=True).values
