"""Low-rank additions to a network's matrices, which learn while the matrices stay; merged, they cost nothing.

Promise: a network with fresh additions computes what it did; merged, it is a plain network again. Written here, as other packages for
this bring in whole model libraries.
Source: Hu et al. 2021, Eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LoraLinear(nn.Linear):
    """W x + b + (alpha / rank) B A x; A is drawn as PyTorch draws linear layers, B begins at 0."""

    def __init__(self, plain: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.lora_a = nn.Parameter(plain.weight.new_empty(rank, plain.in_features))
        self.lora_b = nn.Parameter(plain.weight.new_zeros(plain.out_features, rank))
        self.factor = alpha / rank
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The sum."""
        added: Tensor = (x @ self.lora_a.T) @ self.lora_b.T
        return super().forward(x) + self.factor * added

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight + self.factor * self.lora_b @ self.lora_a)
        plain.bias = self.bias
        return plain


def add_lora(network: nn.Module, rank: int, alpha: float, targets: Sequence[str]) -> list[str]:
    """Give the linear layers in the network's blocks whose last name is among `targets` low-rank additions; their names.

    All other parameters stop learning.

    Raises:
        ValueError: no layer has such a name.
    """
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "blocks." in name and name.rpartition(".")[2] in targets
    ]
    if not found:
        raise ValueError(f"no layer of the network's blocks is called {' or '.join(targets)}; qkv, proj, fc1, fc2 are.")
    network.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        plain = network.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        setattr(network.get_submodule(parent), last, LoraLinear(plain, rank, alpha))
    return found


def merge_lora(network: nn.Module) -> None:
    """Put plain layers that compute the same in place of all additions."""
    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLinear):
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, module.merged())
