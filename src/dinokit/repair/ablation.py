"""Registers broken on purpose, to learn what they do: zeroed, replaced by a mean, noise or another image's, or dropped.

Zeroing alone misleads: it costs a network far more than replacing by a mean does, since a zero is nothing that the blocks ever
saw. Use several. Source: arXiv 2604.14433.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.model import VisionTransformer
from dinokit.repair.form import Form

Ablation = Literal["zero", "mean", "noise", "shuffle"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


def ablate(
    registers: Float[Tensor, "b r d"], how: Ablation, *, mean: Float[Tensor, "r d"] | None = None, seed: int = 0
) -> Float[Tensor, "b r d"]:
    """Registers replaced.

    "zero": by zero; "mean": by `mean`, or the batch's; "noise": by noise of the batch's mean and deviation; "shuffle": by those of
    another image of the batch.

    Raises:
        ValueError: another word, or "shuffle" of a single image.
    """
    match how:
        case "zero":
            return torch.zeros_like(registers)
        case "mean":
            centre = registers.mean(dim=0) if mean is None else mean.to(registers)
            return centre.expand_as(registers)
        case "noise":
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(registers.shape, generator=generator).to(registers)
            spread = registers.std(dim=(0, 2), keepdim=True, correction=0)
            return registers.mean(dim=0) + noise * spread
        case "shuffle":
            if registers.shape[0] < 2:
                raise ValueError("'shuffle' gives each image the registers of another one; a batch of 1 has no other.")
            return registers.roll(1, dims=0)
    raise ValueError(f"ablation {how!r} is unknown; use one of {', '.join(ABLATIONS)}.")


class AblatedRegisters(Form):
    """A network whose registers are ablated before block `block` (depth means: after the last one)."""

    def __init__(
        self,
        model: VisionTransformer,
        how: Ablation,
        *,
        block: int = 0,
        mean: Float[Tensor, "r d"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model)
        if how not in ABLATIONS:
            raise ValueError(f"ablation {how!r} is unknown; use one of {', '.join(ABLATIONS)}, or `without_registers`.")
        if not model.config.num_register_tokens:
            raise ValueError("the network has no registers to ablate.")
        if not 0 <= block <= model.config.depth:
            raise ValueError(f"block is {block}; it lies in 0 to {model.config.depth}.")
        self.how: Ablation = how
        self.at, self.mean, self.seed = block, mean, seed

    def run_block(
        self,
        index: int,
        x: Float[Tensor, "b t d"],
        head_mask: Float[Tensor, "depth heads"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The block, with the registers replaced before it (or after it, if it is the last and `block` says so)."""
        x = self._replaced(x) if index == self.at else x
        x = super().run_block(index, x, head_mask, grid)
        return self._replaced(x) if index + 1 == self.at == self.config.depth else x

    def _replaced(self, x: Tensor) -> Tensor:
        prefix = self.config.num_prefix_tokens
        replaced = ablate(x[:, 1:prefix], self.how, mean=self.mean, seed=self.seed)
        return torch.cat([x[:, :1], replaced, x[:, prefix:]], dim=1)


def without_registers(model: VisionTransformer) -> VisionTransformer:
    """The network with its registers left out at the input: the same parameters, a sequence without them."""
    form = Form(model)
    form.config = model.config.replace(num_register_tokens=0)
    form.register_tokens = nn.Parameter(model.register_tokens.detach()[:, :0], requires_grad=False)
    return form
