"""What other implementations keep beside their weights, written for a model of ours: the inverse of `beside`.

Source: config.json and preprocessor_config.json of transformers, config.json of timm, Birder's checkpoint container.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinokit.config import OFFSET_PLAIN, VARIANTS, ViTConfig, swiglu_dim
from dinokit.errors import WeightsError
from dinokit.images import Cover, Exact, ImageTransform, ShortestEdge
from dinokit.weights.layouts import LAYOUTS

_PIL_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def hf_config(
    config: ViTConfig,
    head: Mapping[str, Tensor] | None = None,
    labels: Mapping[int, str] | None = None,
    *,
    keep_position_rule: bool = False,
) -> dict[str, Any]:
    """config.json as transformers writes it.

    The position rule stands there for registers, as on the hub, and otherwise only if asked: whoever opens the folder gets
    transformers' numbers.

    Raises:
        WeightsError: transformers has no place for this network.
    """
    registers = config.num_register_tokens > 0
    if config.image_size[0] != config.image_size[1]:
        raise WeightsError(
            f"transformers has no place for a position table of {config.image_size} pixels, only for square ones."
        )
    if not isinstance(config.activation, str):
        raise WeightsError("an activation that is a function can't be written to config.json; name one.")
    ratio = _mlp_ratio(config)
    content: dict[str, Any] = {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "architectures": [
            f"Dinov2{'WithRegisters' if registers else ''}{'ForImageClassification' if head else 'Model'}"
        ],
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": ratio,
        "use_swiglu_ffn": config.ffn == "swiglu",
        "hidden_act": config.activation,
        "hidden_dropout_prob": config.embed_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "drop_path_rate": max(config.drop_path, default=0.0),
        "initializer_range": 0.02,
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.image_size[0],
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "qkv_bias": config.qkv_bias,
        "layerscale_value": float(config.layer_scale_init),
        "stage_names": ["stem", *(f"stage{i}" for i in range(1, config.depth + 1))],
        "out_features": [f"stage{config.depth}"],
        "out_indices": [config.depth],
        "apply_layernorm": True,
        "reshape_hidden_states": True,
        "torch_dtype": "float32",
    }
    if registers:
        content["num_register_tokens"] = config.num_register_tokens
    rule = config.position if keep_position_rule else LAYOUTS["hf"].position_rule(config.num_register_tokens)
    if registers or keep_position_rule:
        content |= {"interpolate_offset": rule.offset, "interpolate_antialias": rule.antialias}
    if head:
        classes = head["weight"].shape[0]
        named = {i: (labels or {}).get(i, f"LABEL_{i}") for i in range(classes)}
        content["id2label"] = {str(i): name for i, name in named.items()}
        content["label2id"] = {name: i for i, name in named.items()}
    return content


def timm_config(config: ViTConfig, transform: ImageTransform, head: Mapping[str, Tensor] | None) -> dict[str, Any]:
    """config.json as timm keeps it on the hub. Sizes that differ from the named architecture stand in `model_args`."""
    registers = f"reg{config.num_register_tokens}_" if config.num_register_tokens else ""
    widths = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
    classes = head["weight"].shape[0] if head else 0
    published = any(_size(config) == _size(variant) for variant in VARIANTS.values())
    arguments: dict[str, Any] = (
        {}
        if published
        else {
            "embed_dim": config.embed_dim,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "patch_size": config.patch_size,
            "in_chans": config.num_channels,
            "reg_tokens": config.num_register_tokens,
            "mlp_ratio": (2 if config.ffn == "swiglu" else 1) * config.ffn_dim / config.embed_dim,
        }
    )
    return {
        "architecture": f"vit_{widths.get(config.embed_dim, 'base')}_patch{config.patch_size}_{registers}dinov2",
        "num_classes": classes,
        "num_features": config.embed_dim,
        "global_pool": "token",
        "model_args": arguments | {"img_size": list(config.image_size)},
        "pretrained_cfg": timm_pretrained_cfg(transform, config.image_size)
        | {
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }


def _size(config: ViTConfig) -> ViTConfig:
    """The architecture without what timm states elsewhere: image size and position rule."""
    return config.replace(image_size=(518, 518), position=OFFSET_PLAIN)


def birder_settings(config: ViTConfig) -> dict[str, Any]:
    """The architecture in Birder's words."""
    return {
        "patch_size": config.patch_size,
        "num_layers": config.depth,
        "num_heads": config.num_heads,
        "hidden_dim": config.embed_dim,
        "mlp_dim": config.ffn_dim,
        "num_reg_tokens": config.num_register_tokens,
    }


def birder_container(
    config: ViTConfig, transform: ImageTransform, classes: int, labels: Mapping[int, str] | None
) -> dict[str, Any]:
    """What Birder keeps beside the tensors."""
    rows, columns = config.image_size
    return {
        "birder_version": "v0.8.4",
        "task": "image_classification",
        "signature": {
            "inputs": [{"data_shape": [0, config.num_channels, rows, columns]}],
            "outputs": [{"data_shape": [0, classes]}],
        },
        "class_to_idx": {name: index for index, name in (labels or {}).items()},
        "rgb_stats": {"mean": tuple(transform.mean), "std": tuple(transform.std)},
        "config": birder_settings(config),
    }


def _mlp_ratio(config: ViTConfig) -> int | float:
    """What transformers computes the hidden width from; exact, or refused."""
    if config.ffn == "swiglu":
        for ratio in (4, *(i for i in range(1, 33) if i != 4)):
            if swiglu_dim(config.embed_dim, ratio) == config.ffn_dim:
                return ratio
    elif config.ffn_dim % config.embed_dim == 0:
        return config.ffn_dim // config.embed_dim
    raise WeightsError(
        f"transformers states the hidden width as a whole ratio; {config.ffn_dim} for a width of {config.embed_dim} can't be."
    )


def hf_preprocessor(transform: ImageTransform) -> dict[str, Any]:
    """preprocessor_config.json of a BitImageProcessor.

    Raises:
        WeightsError: that processor can't do what the transform does.
    """
    match transform.resize:
        case ShortestEdge(size):
            resize: dict[str, int] = {"shortest_edge": size}
        case Exact(height, width):
            resize = {"height": height, "width": width}
        case None:
            resize = {"shortest_edge": 224}
        case _:
            raise WeightsError("transformers' image processor can't resize an image to cover a size.")
    crop = transform.crop or (224, 224)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": transform.resize is not None,
        "size": resize,
        "resample": _PIL_RESAMPLE[transform.resample],
        "do_center_crop": transform.crop is not None,
        "crop_size": {"height": crop[0], "width": crop[1]},
        "do_rescale": True,
        "rescale_factor": transform.rescale,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }


def timm_pretrained_cfg(transform: ImageTransform, image_size: tuple[int, int]) -> dict[str, Any]:
    """The preprocessing half of timm's `pretrained_cfg`.

    Raises:
        WeightsError: timm's settings can't say what the transform does.
    """
    size = transform.crop or image_size
    match transform.resize:
        case ShortestEdge(edge):
            mode, fraction = "center", min(size) / edge
        case Exact(height, width):
            mode, fraction, size = "squash", 1.0, (height, width)
        case Cover() | None:
            raise WeightsError("timm's settings can't say this transform's resizing; load the model with another one.")
    return {
        "input_size": [3, *size],
        "fixed_input_size": True,
        "interpolation": transform.resample,
        "crop_pct": fraction,
        "crop_mode": mode,
        "mean": list(transform.mean),
        "std": list(transform.std),
    }
