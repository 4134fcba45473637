"""Repairs inside attention: a bias in place of a register, outlier keys masked, neighbours favoured in the last block.

Source: Jiang et al. 2025 (arXiv 2506.08010), appendix A.2; Hajimiri et al. 2024 (NACLIP, arXiv 2404.08181).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from dinokit.model import VisionTransformer
from dinokit.model.layers import Attention
from dinokit.repair.form import Form, robust_outliers
from dinokit.repair.shift import Neuron, by_block, shift

KeyValue = tuple[Float[Tensor, "heads k"], Float[Tensor, "heads k"]]


class AttentionBias(Form):
    """Test-time registers without a token: one more key and value in each block's softmax, and the register neurons at zero.

    `keys_and_values` holds for each block the mean key and value of a test-time register over a calibration set
    (`mean_keys_and_values`). No token of the residual stream is an outlier then.
    """

    def __init__(
        self, model: VisionTransformer, neurons: Iterable[Neuron], keys_and_values: Sequence[KeyValue]
    ) -> None:
        super().__init__(model)
        if len(keys_and_values) != model.config.depth:
            raise ValueError(
                f"{len(keys_and_values)} keys and values for {model.config.depth} blocks; one pair a block."
            )
        self.neurons = by_block(neurons, model)
        self.keys_and_values = tuple(keys_and_values)

    def run_block(
        self,
        index: int,
        x: Float[Tensor, "b t d"],
        head_mask: Float[Tensor, "depth heads"] | None = None,
        grid: tuple[int, int] | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "b t d"]:
        """The block with one more key and value, and without its register neurons."""
        block = self.block(index)
        q, k, v = self._extended(index, x)
        out = F.scaled_dot_product_attention(q, k, v)
        x = x + block.ls1(_project(block.attn, out, head_mask, index))
        neurons = self.neurons.get(index)
        if neurons is None:
            return block.feed(x)
        return block.feed(x, lambda hidden: shift(hidden, neurons, [], "zero"))

    def block_weights(self, index: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b heads t keys"]:
        """Attention after the softmax; the last key is the bias, so a row over the tokens sums to less than 1."""
        q, k, _ = self._extended(index, x)
        scores = (q @ k.transpose(-2, -1)) * self.block(index).attn.scale
        return scores.softmax(dim=-1)

    def _extended(self, index: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block = self.block(index)
        q, k, v = block.attn.split(block.norm1(x))
        key, value = (part.to(x).expand(x.shape[0], 1, -1, -1).transpose(1, 2) for part in self.keys_and_values[index])
        return q, torch.cat([k, key], dim=2), torch.cat([v, value], dim=2)


class MaskedKeys(Form):
    """Patches whose norm exceeds `factor` times the median of their image are no keys in the blocks from `first_block` on.

    A baseline: it stops outliers from drawing attention and leaves them where they are.
    """

    def __init__(self, model: VisionTransformer, *, first_block: int = 0, factor: float = 4.0) -> None:
        super().__init__(model)
        self.first_block, self.factor = first_block, factor

    def run_block(
        self,
        index: int,
        x: Float[Tensor, "b t d"],
        head_mask: Float[Tensor, "depth heads"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The block without outliers among its keys."""
        if index < self.first_block:
            return super().run_block(index, x, head_mask, grid)
        block = self.block(index)
        q, k, v = block.attn.split(block.norm1(x))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._kept(x)[:, None, None])
        return block.feed(x + block.ls1(_project(block.attn, out, head_mask, index)))

    def block_weights(self, index: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b heads t keys"]:
        """Attention after the softmax; 0 for masked keys."""
        if index < self.first_block:
            return super().block_weights(index, x)
        block = self.block(index)
        q, k, _ = block.attn.split(block.norm1(x))
        scores = (q @ k.transpose(-2, -1)) * block.attn.scale
        return scores.masked_fill(~self._kept(x)[:, None, None], float("-inf")).softmax(dim=-1)

    def _kept(self, x: Tensor) -> Bool[Tensor, "b t"]:
        prefix = self.config.num_prefix_tokens
        kept = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        kept[:, prefix:] = ~robust_outliers(x[:, prefix:].norm(dim=-1), self.factor)
        return kept


class NeighbourAttention(Form):
    """The last block attends by likeness of keys plus nearness of patches: softmax(k k^T / sqrt(d) + omega) v.

    omega is a Gaussian of the distance in patches with deviation `sigma`, added between patches only. With `reduced` the block
    has neither its residual connection nor its feed-forward network, as in NACLIP. For dense features.
    """

    def __init__(self, model: VisionTransformer, *, sigma: float = 5.0, reduced: bool = True) -> None:
        super().__init__(model)
        if sigma <= 0:
            raise ValueError(f"sigma is {sigma}; a deviation in patches is positive.")
        self.sigma, self.reduced = sigma, reduced

    def run_block(
        self,
        index: int,
        x: Float[Tensor, "b t d"],
        head_mask: Float[Tensor, "depth heads"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The last block's attention replaced; the others as they are."""
        if index < self.config.depth - 1:
            return super().run_block(index, x, head_mask, grid)
        if grid is None:
            raise ValueError("this form looks at neighbours and needs the grid; run it through forward or stream.")
        block = self.block(index)
        _, k, v = block.attn.split(block.norm1(x))
        out = F.scaled_dot_product_attention(k, k, v, attn_mask=self._nearness(grid, x))
        attended = block.ls1(_project(block.attn, out, head_mask, index))
        return attended if self.reduced else block.feed(x + attended)

    def _nearness(self, grid: tuple[int, int], x: Tensor) -> Float[Tensor, "t t"]:
        rows, columns = (torch.arange(side, device=x.device, dtype=torch.float32) for side in grid)
        place = torch.cartesian_prod(rows, columns)
        omega = torch.exp(-torch.cdist(place, place).square() / (2 * self.sigma**2))
        prefix = self.config.num_prefix_tokens
        return F.pad(omega, (prefix, 0, prefix, 0)).to(x.dtype)


def _project(attention: Attention, out: Tensor, head_mask: Tensor | None, index: int) -> Tensor:
    """Heads scaled, joined and projected, as `Attention.forward` ends."""
    if head_mask is not None:
        out = out * head_mask[index].to(out.dtype)[:, None, None]
    return attention.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
