"""Readers of the residual stream: hidden states, intermediate tokens, attention weights.

Each runs the network once and only as far as needed, keeps what was asked for, and leaves the model as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dinokit.model.vit import VisionTransformer
from dinokit.tokens import Tokens


def block_indices(which: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Which blocks are meant: a number n means the last n; a list holds 0-based indices, negative ones from the end.

    Ascending, as they are computed.

    Raises:
        ValueError: nothing asked for, an index out of range, or one twice.
    """
    if isinstance(which, int):
        if not 1 <= which <= depth:
            raise ValueError(f"{which} last blocks of {depth}: ask for 1 to {depth}.")
        return tuple(range(depth - which, depth))
    chosen = sorted(index + depth if index < 0 else index for index in which)
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise ValueError(f"blocks {list(which)} of a network of {depth}: indices lie in {-depth} to {depth - 1}.")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"blocks {list(which)} name one block twice.")
    return tuple(chosen)


def hidden_states(
    model: VisionTransformer,
    images: Float[Tensor, "b c h w"],
    masks: Shaped[Tensor, "b n"] | None = None,
    head_mask: Float[Tensor, "depth heads"] | None = None,
) -> tuple[Float[Tensor, "b t d"], ...]:
    """The sequence after the embedding and after each block, before the final norm: depth + 1 tensors."""
    return tuple(model.stream(images, masks, head_mask))


def intermediate_tokens(
    model: VisionTransformer,
    images: Float[Tensor, "b c h w"],
    blocks: int | Sequence[int] = 1,
    *,
    norm: bool = True,
) -> tuple[Tokens, ...]:
    """Tokens after chosen blocks (see `block_indices`), ascending; `norm` applies the final layer norm to each.

    Stops after the last block asked for.
    """
    wanted = block_indices(blocks, model.config.depth)
    size = (images.shape[-2], images.shape[-1])
    found = []
    for index, x in enumerate(model.stream(images), start=-1):
        if index in wanted:
            found.append(model.tokens(model.norm(x) if norm else x, size))
        if index == wanted[-1]:
            break
    return tuple(found)


def attention_weights(
    model: VisionTransformer,
    images: Float[Tensor, "b c h w"],
    blocks: int | Sequence[int] = 1,
    masks: Shaped[Tensor, "b n"] | None = None,
) -> tuple[Float[Tensor, "b heads t t"], ...]:
    """Attention after the softmax of chosen blocks, ascending: row i holds how token i spreads over all tokens.

    Computed again from the block's input, so the model itself keeps its fused attention.
    """
    wanted = block_indices(blocks, model.config.depth)
    found = []
    for index, x in enumerate(model.stream(images, masks)):
        if index in wanted:
            found.append(block_attention(model, index, x))
        if index == wanted[-1]:
            break
    return tuple(found)


def block_attention(
    model: VisionTransformer,
    index: int,
    x: Float[Tensor, "b t d"],
    head_mask: Float[Tensor, "depth heads"] | None = None,
) -> Float[Tensor, "b heads t t"]:
    """Attention weights of block `index`, given the sequence that enters it; scaled by `head_mask` where given."""
    weights = model.block_weights(index, x)
    return weights if head_mask is None else weights * head_mask[index].to(weights.dtype)[:, None, None]


def cast_head_mask(head_mask: Tensor | None, config_depth: int, num_heads: int) -> Tensor | None:
    """A head mask of shape (heads,) or (depth, heads) as (depth, heads).

    Raises:
        ValueError: another shape.
    """
    if head_mask is None:
        return None
    if tuple(head_mask.shape) not in ((num_heads,), (config_depth, num_heads)):
        raise ValueError(
            f"head_mask has shape {tuple(head_mask.shape)}; expected ({num_heads},) or ({config_depth}, {num_heads})."
        )
    return torch.broadcast_to(head_mask, (config_depth, num_heads))
