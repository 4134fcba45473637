"""The direction of artefacts that a loaded network's weights predict.

Source: Wang et al. 2024 (SINDER, arXiv 2407.16826); what it can't see: `dinokit.analysis.sinder`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dinokit.analysis.sinder import DefectDirection, attention_map, defect_direction, feed_forward_map
from dinokit.model import VisionTransformer
from dinokit.model.layers import Block, Mlp


@torch.no_grad()
def predicted_direction(model: VisionTransformer, num_blocks: int | None = None, *, seed: int = 0) -> DefectDirection:
    """From the first `num_blocks` blocks (all if not given); no image is needed. A few seconds for a base network.

    A `gain` near 1 or near `runner_up` means that the weights single out no direction.

    Raises:
        ValueError: no block, or more than the network has.
    """
    depth = model.config.depth
    count = depth if num_blocks is None else num_blocks
    if not 1 <= count <= depth:
        raise ValueError(f"num_blocks is {count}; this network has 1 to {depth}.")
    return defect_direction(_maps(model, count, seed))


def _maps(model: VisionTransformer, count: int, seed: int) -> Iterator[Tensor]:
    width = model.config.embed_dim
    for index in range(count):
        block = model.blocks[index]
        assert isinstance(block, Block)
        value = block.attn.qkv.weight[2 * width :]
        yield attention_map(value, block.attn.proj.weight, block.norm1.weight, block.ls1.gamma)
        output = (block.mlp.fc2 if isinstance(block.mlp, Mlp) else block.mlp.w3).weight
        norm = (block.norm2.weight, block.norm2.bias)
        yield feed_forward_map(block.mlp.neurons, output, norm, block.ls2.gamma, seed=seed)
