"""Readers of the residual stream: hidden states, intermediate tokens, attention weights, and `capture` for all of them at once.

Each runs the network once and only as far as needed, keeps what was asked for, and leaves the model as it was: no hook is set.
Where a network is wrapped in another library's class, give the network inside (`.network` of transformers' classes, `.vit` of
torch.hub's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dinokit.model.layers import Block
from dinokit.model.vit import VisionTransformer
from dinokit.tokens import Tokens

Which = Sequence[int] | Literal["all"]


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


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What was read in one forward pass; each mapping holds exactly the indices that were asked for, none negative.

    Layers 0 to depth are the stream: 0 after the embedding, i after block i - 1. Blocks are counted from 0.
    `residual` is before the final norm, `normed` after it. `attention` is after the softmax; row i is how token i spreads. `mlp` are
    the hidden activations of the feed-forward network ("neurons"): after the activation, or the product before w3 (SwiGLU).
    """

    grid: tuple[int, int]
    num_registers: int
    residual: dict[int, Float[Tensor, "b t d"]] = field(default_factory=dict)
    normed: dict[int, Float[Tensor, "b t d"]] = field(default_factory=dict)
    q: dict[int, Float[Tensor, "b heads t k"]] = field(default_factory=dict)
    k: dict[int, Float[Tensor, "b heads t k"]] = field(default_factory=dict)
    v: dict[int, Float[Tensor, "b heads t k"]] = field(default_factory=dict)
    attention: dict[int, Float[Tensor, "b heads t keys"]] = field(default_factory=dict)
    mlp: dict[int, Float[Tensor, "b t hidden"]] = field(default_factory=dict)

    def tokens(self, layer: int, *, normed: bool = False) -> Tokens:
        """A captured layer with its parts named.

        Raises:
            KeyError: it was not asked for.
        """
        return Tokens((self.normed if normed else self.residual)[layer], self.num_registers, self.grid)

    def heads_joined(self, what: Literal["q", "k", "v"], block: int) -> Tokens:
        """Queries, keys or values as wide as a token, heads side by side: the features that object discovery reads.

        Raises:
            KeyError: they were not asked for.
        """
        part: Tensor = {"q": self.q, "k": self.k, "v": self.v}[what][block]
        return Tokens(part.transpose(1, 2).flatten(2), self.num_registers, self.grid)


def capture(
    model: VisionTransformer,
    images: Float[Tensor, "b c h w"],
    *,
    residual: Which = (),
    normed: Which = (),
    q: Which = (),
    k: Which = (),
    v: Which = (),
    attention: Which = (),
    mlp: Which = (),
) -> Captured:
    """Read any of these at any layers (`residual`, `normed`) or blocks (the others) in one forward pass; see `Captured`.

    Indices may be negative, from the end; "all" means each. Memory is taken for what is asked, and the pass stops after the last
    of it. What happens inside of a block is computed again from the block's input, so the pass itself stays the fast one; a block that
    is asked for costs up to its own time more.

    Raises:
        ValueError: nothing asked for, an index out of range, or neurons of a repaired form (its blocks run otherwise).
    """
    depth = model.config.depth
    layers = {"residual": _indices(residual, depth + 1, "layers"), "normed": _indices(normed, depth + 1, "layers")}
    blocks = {
        name: _indices(which, depth, "blocks")
        for name, which in {"q": q, "k": k, "v": v, "attention": attention, "mlp": mlp}.items()
    }
    last = max((index for found in (*layers.values(), *blocks.values()) for index in found), default=-1)
    if last < 0:
        raise ValueError("nothing was asked for; name layers, for example residual='all' or attention=[-1].")
    if blocks["mlp"] and type(model).run_block is not VisionTransformer.run_block:
        raise ValueError(
            "a repaired form runs its blocks in another way; read the neurons of the network it came from."
        )
    read = Captured(
        grid=model.grid_of(images.shape[-2], images.shape[-1]), num_registers=model.config.num_register_tokens
    )
    for index, x in enumerate(model.stream(images)):
        if index in layers["residual"]:
            read.residual[index] = x
        if index in layers["normed"]:
            read.normed[index] = model.norm(x)
        if index < depth:
            _read_block(model, index, x, {name for name, chosen in blocks.items() if index in chosen}, read)
        if index == last:
            break
    return read


def _read_block(model: VisionTransformer, index: int, x: Tensor, wanted: set[str], read: Captured) -> None:
    block = model.blocks[index]
    assert isinstance(block, Block)
    if wanted & {"q", "k", "v"}:
        for name, part in zip("qkv", block.attn.split(block.norm1(x)), strict=True):
            if name in wanted:
                # a copy: as a view it would keep the other two in memory
                getattr(read, name)[index] = part.clone()
    if "attention" in wanted:
        read.attention[index] = model.block_weights(index, x)
    if "mlp" in wanted:
        read.mlp[index] = block.mlp.neurons(block.norm2(block.attend(x)))


def _indices(which: Which, count: int, noun: str) -> frozenset[int]:
    chosen = range(count) if which == "all" else which
    found = {index + count if index < 0 else index for index in chosen}
    if found and not (min(found) >= 0 and max(found) < count):
        raise ValueError(f"{noun} {sorted(chosen)}: this network has 0 to {count - 1}, or {-count} to -1 from the end.")
    return frozenset(found)
