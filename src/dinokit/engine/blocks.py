"""A transformer block made for inference: LayerScale folded, layers fixed, otherwise what a `Block` is.

It has a block's parts under their names, so whoever reads queries, keys, neurons or attention from a network reads them here too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit import native
from dinokit.engine.decision import Plan
from dinokit.engine.linears import CompiledLinear, FixedLinear, InPlaceLinear, Int8Linear, MklLinear, OneDnnLinear
from dinokit.engine.machine import Machine
from dinokit.model.layers import Attention, Block, Mlp, PatchEmbed, SwiGlu
from dinokit.model.vit import VisionTransformer

# of weight, bias, and what LayerScale multiplies each output by
MakeLinear = Callable[[Tensor, Tensor | None, Tensor | None], FixedLinear]
# Rows for which oneDNN orders weights, where the caller does not say: one image of 224 px.
USUAL_ROWS = 261
PACKED: dict[str, native.Pack] = {
    "avx2": native.FloatMatrix,
    "avx2-int16": native.Int16Matrix,
    "avx2-int8": native.Int8Matrix,
}


def linear_maker(plan: Plan, machine: Machine) -> MakeLinear:
    """How linear layers are made under a plan."""
    match plan.linear:
        case "mkl":
            return _folding(MklLinear, plan)
        case "onednn":
            return _folding(lambda weight, bias: OneDnnLinear(weight, bias, USUAL_ROWS), plan)
        case "int8":
            return _folding(lambda weight, bias: Int8Linear(weight, bias, reduce_range=not machine.vnni), plan)
        case "plain":
            return _folding(InPlaceLinear if plan.in_place else FixedLinear, plan)
        case "avx2" | "avx2-int16" | "avx2-int8":
            return partial(_compiled, PACKED[plan.linear])


def _folding(make: Callable[[Tensor, Tensor | None], FixedLinear], plan: Plan) -> MakeLinear:
    """Layers that know nothing of a factor: it goes into the weights, exactly, before they get their dtype."""

    def made(weight: Tensor, bias: Tensor | None, factor: Tensor | None) -> FixedLinear:
        if factor is not None:
            scale = factor.to(torch.promote_types(factor.dtype, torch.float32))
            weight = scale[:, None] * weight
            bias = None if bias is None else scale * bias
        return make(weight.to(plan.dtype), None if bias is None else bias.to(plan.dtype))

    return made


def _compiled(pack: native.Pack, weight: Tensor, bias: Tensor | None, factor: Tensor | None) -> FixedLinear:
    bias, factor = (None if one is None else one.to(torch.float32) for one in (bias, factor))
    return CompiledLinear(weight.to(torch.float32), bias, pack, factor)


class FastNorm(nn.Module):
    """Layer norm from the residual stream's dtype to that of the matrices."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, plan: Plan) -> None:
        super().__init__()
        self.eps, self.dtype, self.kernels = norm.eps, plan.dtype, plan.kernels
        self.register_buffer("weight", norm.weight.detach().to(plan.residual), persistent=False)
        self.register_buffer("bias", norm.bias.detach().to(plan.residual), persistent=False)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """`x` normed over its last axis."""
        if self.kernels:
            return native.norm(x, self.weight, self.bias, self.eps)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(self.dtype)


class FastAttention(Attention):
    """Attention whose output layer already scales; may be told which keys are real."""

    def __init__(self, attention: Attention, gamma: Tensor, plan: Plan, make: MakeLinear) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.dropout, self.scale = attention.num_heads, 0.0, attention.scale
        self.attend = native.attention if plan.linear == "avx2" else native.attention_int16
        self.kernels = plan.kernels and attention.qkv.in_features // attention.num_heads % native.PANEL == 0
        self.qkv = _fixed(attention.qkv, None, make)  # type: ignore[assignment]
        self.proj = _fixed(attention.proj, gamma, make)  # type: ignore[assignment]

    def heads(
        self,
        x: Float[Tensor, "b t d"],
        keys: Float[Tensor, "1 1 1 t"] | None,
        head_scale: Float[Tensor, " heads"] | None,
    ) -> Float[Tensor, "b t d"]:
        """What the heads give, side by side, before the output layer."""
        if self.kernels and keys is None:
            out: Tensor = self.attend(self.qkv(x), self.num_heads, self.scale).unflatten(2, (self.num_heads, -1))
        else:
            q, k, v = self.split(x)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)
        if head_scale is not None:
            out = out * head_scale.to(out.dtype)[:, None]
        return out.flatten(2)


class FastBlock(Block):
    """A block for inference. `ls1` and `ls2` are identities: their factors are in the layers before them."""

    def __init__(self, block: Block, plan: Plan, make: MakeLinear) -> None:
        nn.Module.__init__(self)
        self.norm1, self.norm2 = FastNorm(block.norm1, plan), FastNorm(block.norm2, plan)  # type: ignore[assignment]
        self.attn: FastAttention = FastAttention(block.attn, block.ls1.gamma, plan, make)
        self.mlp = _feed_forward(block.mlp, block.ls2.gamma, make)
        for name in ("ls1", "ls2", "drop_path1", "drop_path2"):
            setattr(self, name, nn.Identity())
        self.residual = plan.residual
        self.eval()

    def attend(
        self, x: Float[Tensor, "b t d"], head_scale: Float[Tensor, " heads"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The first half: the sequence with what attention adds."""
        return x + self.attn(self.norm1(x), head_scale).to(x.dtype)  # type: ignore[no-any-return]

    def feed(self, x: Float[Tensor, "b t d"], edit: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, "b t d"]:
        """The second half: the sequence with what the feed-forward network adds."""
        hidden = self.mlp.neurons(self.norm2(x))
        return x + self.mlp.project(hidden if edit is None else edit(hidden)).to(x.dtype)

    def advance(
        self,
        x: Float[Tensor, "b t d"],
        keys: Float[Tensor, "1 1 1 t"] | None = None,
        head_scale: Float[Tensor, " heads"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """The sequence after this block; `x` is the block's to overwrite. `keys` is added to the scores: minus infinity for padding."""
        x = _add(self.attn.proj, self.attn.heads(self.norm1(x), keys, head_scale), x)
        hidden = self.mlp.neurons(self.norm2(x))
        return _add(self.mlp.w3 if isinstance(self.mlp, SwiGlu) else self.mlp.fc2, hidden, x)


class FastMlp(Mlp):
    """Linear, activation, linear."""

    def __init__(self, mlp: Mlp, gamma: Tensor, make: MakeLinear) -> None:
        nn.Module.__init__(self)
        self.fc1 = _fixed(mlp.fc1, None, make)  # type: ignore[assignment]
        self.act = mlp.act
        self.fc2 = _fixed(mlp.fc2, gamma, make)  # type: ignore[assignment]

    def neurons(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t hidden"]:
        """The hidden activations."""
        first: FixedLinear = self.fc1  # type: ignore[assignment]
        return first.gelu(x) if self.act is F.gelu else self.act(first(x))


class FastSwiGlu(SwiGlu):
    """Gated feed-forward."""

    def __init__(self, mlp: SwiGlu, gamma: Tensor, make: MakeLinear) -> None:
        nn.Module.__init__(self)
        self.w12 = _fixed(mlp.w12, None, make)  # type: ignore[assignment]
        self.w3 = _fixed(mlp.w3, gamma, make)  # type: ignore[assignment]


def _feed_forward(mlp: Mlp | SwiGlu, gamma: Tensor, make: MakeLinear) -> Mlp | SwiGlu:
    return FastSwiGlu(mlp, gamma, make) if isinstance(mlp, SwiGlu) else FastMlp(mlp, gamma, make)


def _fixed(linear: nn.Linear, gamma: Tensor | None, make: MakeLinear) -> FixedLinear:
    """`linear` as a plan runs it; `gamma` multiplies what it gives."""
    bias = None if linear.bias is None else linear.bias.detach()
    return make(linear.weight.detach(), bias, None if gamma is None else gamma.detach())


def _add(layer: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    assert isinstance(layer, FixedLinear)
    return layer.add(x, residual)


def key_mask(num_tokens: int, padded: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "1 1 1 t"] | None:
    """What is added to scores so that padding is no key; None where there is no padding."""
    if num_tokens == padded:
        return None
    mask = torch.zeros(1, 1, 1, padded, dtype=dtype, device=device)
    mask[..., num_tokens:] = float("-inf")
    return mask


def fast_blocks(model: VisionTransformer, plan: Plan, machine: Machine) -> nn.ModuleList:
    """The blocks of a network, made for inference."""
    make = linear_maker(plan, machine)
    return nn.ModuleList(FastBlock(block, plan, make) for block in model.blocks if isinstance(block, Block))


class PatchLinear(nn.Module):
    """Patches to tokens by one matrix: a strided convolution whose windows do not overlap is nothing else."""

    def __init__(self, patch_embed: PatchEmbed, plan: Plan) -> None:
        super().__init__()
        projection = patch_embed.proj
        self.patch_size, self.dtype = projection.kernel_size[0], plan.dtype
        weight, bias = projection.weight.detach().flatten(1).to(plan.dtype), projection.bias
        assert bias is not None
        bias = bias.detach().to(plan.dtype)
        # exact whatever the blocks are: its inputs are pixels, one layer of many
        self.linear = _compiled(native.FloatMatrix, weight, bias, None) if plan.kernels else FixedLinear(weight, bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Patch tokens, row by row."""
        p = self.patch_size
        rows, columns = images.shape[-2] // p, images.shape[-1] // p
        cut = images[..., : rows * p, : columns * p].to(self.dtype)
        patches = cut.unflatten(3, (columns, p)).unflatten(2, (rows, p)).permute(0, 2, 4, 1, 3, 5)  # b gh gw c p p
        return self.linear(patches.flatten(3).flatten(1, 2))  # type: ignore[no-any-return]
