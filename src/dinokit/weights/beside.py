"""What lies beside the tensors: configurations of transformers and timm, Birder's signature. Read into hints, claims and labels.

Hints say what shapes can't; claims say again what shapes say, and are checked: a configuration that belongs to other weights must
not pass in silence.
Source: config.json as transformers and timm write it; Birder's checkpoint container.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dinokit.config import PositionRule, ViTConfig
from dinokit.errors import WeightsError
from dinokit.weights.convert import Converted
from dinokit.weights.files import Checkpoint
from dinokit.weights.infer import Hints

HF_MODEL_TYPES = ("dinov2", "dinov2_with_registers")

# Settings of Birder's networks that the tensors say already, or that matter in training and for `detection_features` alone.
# Any other (another norm, activation, epsilon) would change what the network computes.
BIRDER_SETTINGS = frozenset(
    {
        "pos_embed_special_tokens",
        "patch_size",
        "num_layers",
        "num_heads",
        "hidden_dim",
        "mlp_dim",
        "num_reg_tokens",
        "layer_scale_init_value",
        "drop_path_rate",
        "out_indices",
        "pos_embed_antialias",
        "pos_embed_interpolation_mode",
    }
)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """`claims` maps a field of `ViTConfig` to (key in the file, value there). `rgb_stats` is (mean, std) where stated."""

    hints: Hints = field(default_factory=Hints)
    claims: dict[str, tuple[str, Any]] = field(default_factory=dict)
    labels: dict[int, str] | None = None
    rgb_stats: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None


def look_beside(checkpoint: Checkpoint, converted: Converted) -> Beside:
    """Read the configuration of whichever implementation wrote one.

    Raises:
        WeightsError: the configuration is of another kind of model, or a value in it is of the wrong type.
    """
    config = checkpoint.config or {}
    try:
        if "signature" in checkpoint.metadata:
            return _birder(checkpoint.metadata, str(checkpoint.path))
        if "model_type" in config or "hidden_size" in config:
            return _hf(config, converted)
        if "architecture" in config:
            return _timm(config)
    except WeightsError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise WeightsError(
            f"{checkpoint.path}: the configuration beside the weights can't be read ({error!r})."
        ) from error
    return Beside()


def check_claims(config: ViTConfig, beside: Beside, converted: Converted, source: str) -> None:
    """Compare what the configuration says with what the tensors are.

    Raises:
        WeightsError: they disagree; names the tensor, both values and the likely cause.
    """
    for name, (key, claimed) in beside.claims.items():
        found = getattr(config, name)
        if claimed != found:
            native, remedy = _EVIDENCE[name]
            tensor = converted.state.get(native)
            shape = "" if tensor is None else f" ({native} is {'x'.join(map(str, tensor.shape))})"
            raise WeightsError(
                f"{source} does not fit its configuration: {key} says {claimed}, the weights say {found}{shape}. {remedy}"
            )


_EVIDENCE: dict[str, tuple[str, str]] = {
    "embed_dim": ("cls_token", "The configuration is of another size of model."),
    "depth": ("", "The configuration is of another size of model."),
    "patch_size": ("patch_embed.proj.weight", "The released DINOv2 weights use 14; fix config.json."),
    "num_channels": ("patch_embed.proj.weight", "Fix config.json."),
    "num_register_tokens": (
        "register_tokens",
        "Weights with registers belong to model_type dinov2_with_registers, weights without to dinov2; fix config.json.",
    ),
    "ffn": ("blocks.0.mlp.w12.weight", "use_swiglu_ffn is true for giant only; fix config.json."),
    "qkv_bias": ("blocks.0.attn.qkv.bias", "Fix config.json."),
}


def _hf(config: Mapping[str, Any], converted: Converted) -> Beside:
    kind = config.get("model_type", "dinov2")
    if kind not in HF_MODEL_TYPES:
        raise WeightsError(f"config.json is of model_type {kind!r}; dinokit reads {' and '.join(HF_MODEL_TYPES)}.")
    registers = int(config.get("num_register_tokens", 4)) if kind == "dinov2_with_registers" else 0
    rule = converted.layout.position_rule(converted.num_registers)
    rate = float(config.get("drop_path_rate", 0.0))
    id2label = config.get("id2label")
    return Beside(
        hints=Hints(
            num_heads=int(config.get("num_attention_heads", 12)),
            image_size=_pair(config.get("image_size", 224)),
            layer_norm_eps=float(config.get("layer_norm_eps", 1e-6)),
            activation=str(config.get("hidden_act", "gelu")),
            position=PositionRule(
                float(config.get("interpolate_offset", rule.offset)),
                bool(config.get("interpolate_antialias", rule.antialias)),
            ),
            drop_path=(rate,) * converted.depth if rate else None,
        ),
        claims={
            "embed_dim": ("hidden_size", int(config.get("hidden_size", 768))),
            "depth": ("num_hidden_layers", int(config.get("num_hidden_layers", 12))),
            "patch_size": ("patch_size", int(config.get("patch_size", 16))),
            "num_channels": ("num_channels", int(config.get("num_channels", 3))),
            "num_register_tokens": (f"num_register_tokens (model_type {kind})", registers),
            "ffn": ("use_swiglu_ffn", "swiglu" if config.get("use_swiglu_ffn", False) else "mlp"),
            "qkv_bias": ("qkv_bias", bool(config.get("qkv_bias", True))),
        },
        labels={int(index): str(label) for index, label in id2label.items()} if id2label else None,
    )


def _timm(config: Mapping[str, Any]) -> Beside:
    arguments = config.get("model_args") or {}
    cfg = config.get("pretrained_cfg") or {}
    size = arguments.get("img_size") or (cfg.get("input_size") or (None, None, None))[1:]
    names = cfg.get("label_names") or config.get("label_names")
    claims = {"embed_dim": ("num_features", int(config["num_features"]))} if config.get("num_features") else {}
    return Beside(
        hints=Hints(
            num_heads=int(arguments["num_heads"]) if "num_heads" in arguments else None,
            image_size=_pair(size) if size and size != (None, None) else None,
        ),
        claims=claims,
        labels=dict(enumerate(map(str, names))) if names else None,
    )


def _birder(metadata: Mapping[str, Any], source: str) -> Beside:
    # In .pt files these are objects, in .safetensors JSON texts.
    found = {
        key: json.loads(value) if isinstance(value, str) and value[:1] in "{[" else value
        for key, value in metadata.items()
    }
    shape = found["signature"]["inputs"][0]["data_shape"]
    stats = found.get("rgb_stats") or {}
    overrides = found.get("config") or {}
    foreign = sorted(overrides.keys() - BIRDER_SETTINGS)
    if foreign or overrides.get("pos_embed_special_tokens"):
        raise WeightsError(
            f"{source} was trained with settings that are not DINOv2's: {', '.join(foreign) or 'pos_embed_special_tokens'}. Use "
            f"Birder itself."
        )
    labels = {int(index): str(label) for label, index in (found.get("class_to_idx") or {}).items()}
    return Beside(
        hints=Hints(num_heads=overrides.get("num_heads"), image_size=(int(shape[2]), int(shape[3]))),
        claims={"num_channels": ("signature", int(shape[1]))},
        labels=labels or None,
        rgb_stats=(_triple(stats["mean"]), _triple(stats["std"])) if stats else None,
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)
