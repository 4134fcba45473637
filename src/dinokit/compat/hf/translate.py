"""Between the Hugging Face configurations and `ViTConfig`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dinokit.config import PositionRule, ViTConfig, swiglu_dim


def to_vit(config: Any) -> ViTConfig:
    """The native form of a `Dinov2ConfigBase`; see its `to_vit_config`."""
    width, heads = config.hidden_size, config.num_attention_heads
    if isinstance(width, int) and heads and width % heads:
        raise ValueError(f"The hidden size {(width,)} is not a multiple of the number of attention heads {heads}.")
    patch_height, patch_width = _pair("patch_size", config.patch_size)
    if patch_height != patch_width:
        raise ValueError(f"patch_size is {config.patch_size}; patches must be square.")
    try:
        return ViTConfig(
            embed_dim=width,
            depth=config.num_hidden_layers,
            num_heads=heads,
            ffn_dim=swiglu_dim(width, float(config.mlp_ratio))
            if config.use_swiglu_ffn
            else int(width * config.mlp_ratio),
            ffn="swiglu" if config.use_swiglu_ffn else "mlp",
            patch_size=patch_height,
            image_size=_pair("image_size", config.image_size),
            num_channels=config.num_channels,
            num_register_tokens=config.register_count,
            qkv_bias=bool(config.qkv_bias),
            activation=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            layer_scale_init=config.layerscale_value,
            embed_dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            drop_path=(config.drop_path_rate,) * config.num_hidden_layers if config.drop_path_rate else (),
            position=PositionRule(float(config.interpolate_offset), bool(config.interpolate_antialias)),
        )
    except ValueError as error:
        error.add_note(
            "Here embed_dim is hidden_size, depth num_hidden_layers, num_heads num_attention_heads, "
            "ffn_dim follows from mlp_ratio, drop_path from drop_path_rate."
        )
        raise


def from_vit(vit: ViTConfig) -> dict[str, Any]:
    """Arguments of the configuration without registers; see `Dinov2ConfigBase.from_vit_config`."""
    if len(set(vit.drop_path)) > 1:
        raise ValueError(f"drop_path {vit.drop_path} differs between blocks; drop_path_rate is one number for all.")
    swiglu = vit.ffn == "swiglu"
    height, width = vit.image_size
    return {
        "hidden_size": vit.embed_dim,
        "num_hidden_layers": vit.depth,
        "num_attention_heads": vit.num_heads,
        "mlp_ratio": _mlp_ratio(vit),
        "hidden_act": vit.activation,
        "hidden_dropout_prob": vit.embed_dropout,
        "attention_probs_dropout_prob": vit.attention_dropout,
        "layer_norm_eps": vit.layer_norm_eps,
        "image_size": height if height == width else (height, width),
        "patch_size": vit.patch_size,
        "num_channels": vit.num_channels,
        "qkv_bias": vit.qkv_bias,
        "layerscale_value": vit.layer_scale_init,
        "drop_path_rate": vit.drop_path[0] if vit.drop_path else 0.0,
        "use_swiglu_ffn": swiglu,
    }


def _mlp_ratio(vit: ViTConfig) -> float | int:
    """A ratio that gives `vit.ffn_dim` back; whole where possible, since transformers 5 reads only those."""
    if vit.ffn == "mlp":
        ratio = vit.ffn_dim / vit.embed_dim
        if int(vit.embed_dim * ratio) < vit.ffn_dim:  # the quotient was rounded down
            ratio = math.nextafter(ratio, math.inf)
        return int(ratio) if ratio.is_integer() else ratio
    whole = round(1.5 * vit.ffn_dim / vit.embed_dim)
    for ratio in (whole, 1.5 * vit.ffn_dim / vit.embed_dim):
        if ratio and swiglu_dim(vit.embed_dim, float(ratio)) == vit.ffn_dim:
            return ratio
    raise ValueError(f"no mlp_ratio gives a SwiGLU width of {vit.ffn_dim} for {vit.embed_dim}; it is a multiple of 8.")


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two."""
    if isinstance(value, int):
        return value, value
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(side, int) for side in value):
        raise ValueError(f"{name} is {value!r}; it must be a whole number or two, (height, width).")
    return value[0], value[1]
