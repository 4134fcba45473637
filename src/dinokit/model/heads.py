"""Linear classifiers on frozen features, as Meta, transformers, timm and Birder publish them.

Source: Oquab et al. 2023, section 7.1 and appendix B.3; dinov2/hub/classifiers.py for the order of the features.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.tokens import Tokens

HeadInput = Literal["cls", "cls+mean", "4cls+mean"]
HEAD_WIDTHS: dict[int, HeadInput] = {1: "cls", 2: "cls+mean", 5: "4cls+mean"}


class LinearHead(nn.Module):
    """One linear layer on frozen tokens after the final norm; registers take no part.

    It reads the class token ("cls"), that and the mean patch ("cls+mean"), or the class tokens of the last four blocks, oldest
    first, and the last mean patch ("4cls+mean").
    """

    def __init__(self, embed_dim: int, num_classes: int, inputs: HeadInput = "cls+mean") -> None:
        super().__init__()
        factor = {name: width for width, name in HEAD_WIDTHS.items()}[inputs]
        self.inputs: HeadInput = inputs
        self.linear = nn.Linear(factor * embed_dim, num_classes)

    @property
    def num_layers(self) -> int:
        """How many last blocks the head reads."""
        return 4 if self.inputs == "4cls+mean" else 1

    def forward(self, *layers: Tokens) -> Float[Tensor, "b classes"]:
        """Logits from the tokens of the last `num_layers` blocks, oldest first, each after the final norm."""
        if len(layers) != self.num_layers:
            raise ValueError(f"this head reads {self.num_layers} blocks; {len(layers)} were given.")
        features = [tokens.cls for tokens in layers]
        if self.inputs != "cls":
            features.append(layers[-1].patches.mean(dim=1))
        return self.linear(torch.cat(features, dim=-1))  # type: ignore[no-any-return]
