"""The parts of a pre-norm transformer block, with the parameter names of Meta's released files.

Attention always runs through `scaled_dot_product_attention`; its weights are computed by `Attention.weights`, for who asks.
Source: Oquab et al. 2023; LayerScale: Touvron et al. 2021 (CaiT), Eq. 4; SwiGLU: Shazeer 2020; stochastic depth: Huang et al. 2016.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinokit.config import Activation, ViTConfig


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_gelu_tanh = functools.partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function behind a name; a function is returned as it is.

    Raises:
        ValueError: the name is unknown.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}, or a function.")
    return ACTIVATIONS[activation]


class PatchEmbed(nn.Module):
    """Patches to tokens by one strided convolution. Rows and columns that fill no whole patch are dropped."""

    def __init__(self, num_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_channels, embed_dim, patch_size, patch_size)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Patch tokens, row by row."""
        tokens: Tensor = self.proj(images.to(self.proj.weight.dtype))
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values in one projection (rows in this order)."""

    def __init__(self, embed_dim: int, num_heads: int, *, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.scale: float = (embed_dim // num_heads) ** -0.5
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def split(
        self, x: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b heads t k"], Float[Tensor, "b heads t k"], Float[Tensor, "b heads t k"]]:
        """Queries, keys and values of each head."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def forward(
        self, x: Float[Tensor, "b t d"], head_scale: Float[Tensor, " heads"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Attended tokens. `head_scale` multiplies what each head gives, which equals scaling its attention weights."""
        q, k, v = self.split(x)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        if head_scale is not None:
            out = out * head_scale.to(out.dtype)[:, None, None]
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b heads t t"]:
        """Attention weights after the softmax: in [0, 1], each row sums to 1. No dropout."""
        q, k, _ = self.split(x)
        scores: Tensor = q @ k.transpose(-2, -1)
        return (scores * self.scale).softmax(dim=-1)


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.act = activation_function(activation)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)

    def neurons(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t hidden"]:
        """The hidden activations."""
        return self.act(self.fc1(x))

    def project(self, hidden: Float[Tensor, "b t hidden"]) -> Float[Tensor, "b t d"]:
        """What hidden activations write."""
        return self.fc2(hidden)  # type: ignore[no-any-return]

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each token on its own."""
        return self.project(self.neurons(x))


class SwiGlu(nn.Module):
    """Gated feed-forward: w3(silu(gate) * up), gate and up being the halves of w12 in this order."""

    def __init__(self, embed_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(embed_dim, 2 * ffn_dim)
        self.w3 = nn.Linear(ffn_dim, embed_dim)

    def neurons(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t hidden"]:
        """The hidden activations: the product that w3 reads; may be negative."""
        gate, up = self.w12(x).chunk(2, dim=-1)
        return F.silu(gate) * up  # type: ignore[no-any-return]

    def project(self, hidden: Float[Tensor, "b t hidden"]) -> Float[Tensor, "b t d"]:
        """What hidden activations write."""
        return self.w3(hidden)  # type: ignore[no-any-return]

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Each token on its own."""
        return self.project(self.neurons(x))


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch."""

    def __init__(self, embed_dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), init))

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """`x` scaled."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the branch of a whole sample with probability `rate` and rescales the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The identity outside of training."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = (torch.rand((x.shape[0], 1, 1), dtype=x.dtype, device=x.device) + keep).floor()
        return x / keep * kept

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        d = config.embed_dim
        self.norm1 = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.attn = Attention(d, config.num_heads, qkv_bias=config.qkv_bias, dropout=config.attention_dropout)
        self.ls1 = LayerScale(d, config.layer_scale_init)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.mlp: Mlp | SwiGlu = (
            SwiGlu(d, config.ffn_dim) if config.ffn == "swiglu" else Mlp(d, config.ffn_dim, config.activation)
        )
        self.ls2 = LayerScale(d, config.layer_scale_init)
        self.drop_path2 = DropPath(drop_path)

    def attend(
        self, x: Float[Tensor, "b t d"], head_scale: Float[Tensor, " heads"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The first half: the sequence with what attention adds."""
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), head_scale)))  # type: ignore[no-any-return]

    def feed(self, x: Float[Tensor, "b t d"], edit: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, "b t d"]:
        """The second half: the sequence with what the feed-forward network adds, its hidden activations passed through `edit`."""
        hidden = self.mlp.neurons(self.norm2(x))
        written = self.mlp.project(hidden if edit is None else edit(hidden))
        return x + self.drop_path2(self.ls2(written))  # type: ignore[no-any-return]

    def forward(
        self, x: Float[Tensor, "b t d"], head_scale: Float[Tensor, " heads"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The sequence after this block."""
        return self.feed(self.attend(x, head_scale))
