"""Stochastic depth on a subset: a branch runs on some samples of the batch only, which saves its cost for the others.

Promise: which samples, depends on (seed, step, sample ids, block, branch) and on nothing else; shapes are the same every step.
Source: dinov2/layers/block.py (facebookresearch/dinov2); Oquab et al. 2023, section 5; Huang et al. 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dinokit.model import VisionTransformer
from dinokit.model.layers import Block
from dinokit.train.counter import Stream


class BlockSubsets(NamedTuple):
    """The samples whose attention, and the samples whose feed-forward branch, runs in one block."""

    attention: Int64[Tensor, " kept"]
    feed_forward: Int64[Tensor, " kept"]


Subsets = Sequence[BlockSubsets | None]
"""One entry a block; None runs the block as it is."""


def num_kept(rate: float, batch_size: int) -> int:
    """Samples of a batch whose branch runs: the whole part of b (1 - rate), at least one."""
    return max(int(batch_size * (1 - rate)), 1)


def draw_subsets(
    stream: Stream, step: int, samples: Int64[Tensor, " b"], rates: Sequence[float], together: int | None = None
) -> Subsets:
    """Subsets for every block with a rate above 0: the samples whose random numbers are smallest.

    They are chosen among `together` samples in a row, by default the whole batch. With `together` a divisor of every
    process's batch, one process and several choose alike.

    Raises:
        ValueError: the batch is no multiple of `together`.
    """
    batch = len(samples)
    together = together or batch
    if batch % together:
        raise ValueError(f"together is {together}, for a batch of {batch}: the batch must be a multiple of it.")
    if not any(rates):
        return [None] * len(rates)
    scores = stream.uniform_tensor(step, samples, 2 * len(rates)).T.unflatten(1, (-1, together))
    order = (
        scores.argsort(dim=-1) + torch.arange(0, batch, together, device=samples.device)[:, None]
    )  # 2 depth, g, together
    found: list[BlockSubsets | None] = []
    for index, rate in enumerate(rates):
        kept = order[2 * index : 2 * index + 2, :, : num_kept(rate, together)].flatten(1)
        found.append(BlockSubsets(kept[0], kept[1]) if rate else None)
    return found


def add_on_subset(
    x: Float[Tensor, "b t d"], branch: Callable[[Tensor], Tensor], subset: Int64[Tensor, " kept"]
) -> Float[Tensor, "b t d"]:
    """The sum x + (b / kept) branch(x) for the samples of `subset`, which alone go through it; the others as they are."""
    # index_select and not x[subset]: its gradient is an index_add, without the sort that repeated indices would need
    added = branch(x.index_select(0, subset))
    return x.index_add(0, subset, added.to(x.dtype), alpha=len(x) / len(subset))


def block_on_subset(block: Block, x: Float[Tensor, "b t d"], subsets: BlockSubsets) -> Float[Tensor, "b t d"]:
    """A block both of whose branches run on subsets; layer scale belongs to the branch."""
    x = add_on_subset(x, lambda y: block.ls1(block.attn(block.norm1(y))), subsets.attention)
    return add_on_subset(x, lambda y: block.ls2(block.mlp(block.norm2(y))), subsets.feed_forward)


def run_blocks(
    model: VisionTransformer, groups: Sequence[Float[Tensor, "..."]], subsets: Sequence[Subsets]
) -> list[Float[Tensor, "..."]]:
    """Sequences of several lengths (groups of crops) through all blocks, block by block; not normed.

    All groups pass a block before the next one begins, so that its weights are gathered, or read, once. A block without
    subset runs by the network's own `run_block`; activation checkpointing is as set there.
    """
    current = list(groups)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        for g, x in enumerate(current):
            chosen = subsets[g][index]
            if chosen is None:
                current[g] = model.run_block(index, x)
            elif model.checkpoint_options is not None and torch.is_grad_enabled():
                current[g] = checkpoint(block_on_subset, block, x, chosen, **model.checkpoint_options)
            else:
                current[g] = block_on_subset(block, x, chosen)
    return current
