"""The numbers that determine a network, and the table of the published ones.

`ViTConfig` is checked once, when it is made; everything below trusts it.
Source: Oquab et al. 2023 (DINOv2), Table 17 with ViT-B's depth as in the code (12); Darcet et al. 2024 (registers).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Activation = str | Callable[[Any], Any]
Ffn = Literal["mlp", "swiglu"]

# Bounds on what may be built. A configuration file with absurd values must fail before memory is asked for.
MAX_DEPTH = 128
MAX_EMBED_DIM = 8192
MAX_FFN_DIM = 65_536
MAX_PATCHES = 65_536
MAX_REGISTERS = 4096


class PositionRule(NamedTuple):
    """How the position table is resampled for another grid: a property of where the weights came from.

    `offset` is added to the asked grid before the scale factor is formed (0.0: sampled by output size).
    `antialias` also changes the kernel: PyTorch's bicubic has a = -0.5 with it and a = -0.75 without, so even upscaling differs.
    """

    offset: float
    antialias: bool


SIZE_ANTIALIAS = PositionRule(0.0, True)  # register models everywhere; timm
SIZE_PLAIN = PositionRule(0.0, False)  # transformers 5 without registers; Birder's set_dynamic_size
OFFSET_PLAIN = PositionRule(0.1, False)  # Meta's models without registers; transformers 4.34


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture of one `VisionTransformer`.

    `image_size` is (height, width) in pixels of the trained position table; other sizes are accepted at run time.
    `ffn_dim` is the hidden width of the feed-forward network (of each half, for SwiGLU).
    `activation` names an activation of the MLP or is one; SwiGLU always uses SiLU.

    Raises:
        ValueError: a value is out of its bounds or two values disagree.
    """

    embed_dim: int
    depth: int
    num_heads: int
    ffn_dim: int
    ffn: Ffn = "mlp"
    patch_size: int = 14
    image_size: tuple[int, int] = (518, 518)
    num_channels: int = 3
    num_register_tokens: int = 0
    qkv_bias: bool = True
    activation: Activation = "gelu"
    layer_norm_eps: float = 1e-6
    layer_scale_init: float = 1.0
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: tuple[float, ...] = ()
    position: PositionRule = SIZE_ANTIALIAS

    def __post_init__(self) -> None:
        _check_range("embed_dim", self.embed_dim, 1, MAX_EMBED_DIM)
        _check_range("depth", self.depth, 1, MAX_DEPTH)
        _check_range("num_heads", self.num_heads, 1, self.embed_dim)
        _check_range("ffn_dim", self.ffn_dim, 1, MAX_FFN_DIM)
        _check_range("num_channels", self.num_channels, 1, 4096)
        _check_range("num_register_tokens", self.num_register_tokens, 0, MAX_REGISTERS)
        _check_range("patch_size", self.patch_size, 1, 4096)
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim is {self.embed_dim} and num_heads is {self.num_heads}: the width must be a multiple of the heads."
            )
        if self.ffn not in ("mlp", "swiglu"):
            raise ValueError(f"ffn is {self.ffn!r}; it must be 'mlp' or 'swiglu'.")
        if min(self.image_size) < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than one patch of {self.patch_size} pixels.")
        _check_range("number of patches", math.prod(self.grid), 1, MAX_PATCHES)
        for name in ("embed_dropout", "attention_dropout"):
            _check_rate(name, getattr(self, name))
        if self.drop_path and len(self.drop_path) != self.depth:
            raise ValueError(
                f"drop_path has {len(self.drop_path)} rates for {self.depth} blocks; give one a block, or none."
            )
        for rate in self.drop_path:
            _check_rate("drop_path", rate)

    @property
    def grid(self) -> tuple[int, int]:
        """(Rows, columns) of the trained position table."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the first patch: the class token and the registers."""
        return 1 + self.num_register_tokens

    def replace(self, **changes: object) -> ViTConfig:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be a whole number.")
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must lie in {low} to {high}.")


def _check_rate(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}; a rate lies in 0 to 1, without 1.")


def swiglu_dim(embed_dim: int, ratio: float = 4.0) -> int:
    """Hidden width of DINOv2's SwiGLU: two thirds of the MLP's, rounded up to a multiple of 8.

    Source: dinov2/layers/swiglu_ffn.py (facebookresearch/dinov2).
    """
    return (int(int(embed_dim * ratio) * 2 / 3) + 7) // 8 * 8


def linear_drop_path(rate: float, depth: int) -> tuple[float, ...]:
    """Stochastic-depth rates that rise evenly from 0 in the first block to `rate` in the last (Touvron et al. 2021)."""
    return tuple(rate * i / max(depth - 1, 1) for i in range(depth))


def _variant(embed_dim: int, depth: int, num_heads: int, ffn: Ffn, num_register_tokens: int) -> ViTConfig:
    return ViTConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        ffn=ffn,
        ffn_dim=swiglu_dim(embed_dim) if ffn == "swiglu" else 4 * embed_dim,
        num_register_tokens=num_register_tokens,
        position=SIZE_ANTIALIAS if num_register_tokens else OFFSET_PLAIN,
    )


VARIANTS: dict[str, ViTConfig] = {
    "vits14": _variant(384, 12, 6, "mlp", 0),
    "vitb14": _variant(768, 12, 12, "mlp", 0),
    "vitl14": _variant(1024, 24, 16, "mlp", 0),
    "vitg14": _variant(1536, 40, 24, "swiglu", 0),
    "vits14_reg": _variant(384, 12, 6, "mlp", 4),
    "vitb14_reg": _variant(768, 12, 12, "mlp", 4),
    "vitl14_reg": _variant(1024, 24, 16, "mlp", 4),
    "vitg14_reg": _variant(1536, 40, 24, "swiglu", 4),
}
"""The eight published networks, with the position rule of Meta's own code."""
