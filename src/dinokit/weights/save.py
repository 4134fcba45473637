"""Write a model in any layout: a file, or a folder as transformers and timm keep them.

Promise: each file appears whole or not at all, weights before the configuration that makes a folder loadable, and nothing that
exists is replaced unless asked. What is written opens in the implementation that the layout belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dinokit._version import __version__
from dinokit.config import OFFSET_PLAIN, VARIANTS, ViTConfig, swiglu_dim
from dinokit.errors import OutputError, WeightsError
from dinokit.images import ImageTransform
from dinokit.model import LinearHead
from dinokit.weights import files
from dinokit.weights.convert import from_native
from dinokit.weights.layouts import LAYOUTS
from dinokit.weights.load import Pretrained

FOLDER_LAYOUTS = ("hf", "timm")
_HEAD_FITS = {"hf": ("cls+mean",), "hf5": ("cls+mean",), "timm": ("cls",), "birder": ("cls",), "birder_legacy": ("cls",), "official": ()}


def save(
    pretrained: Pretrained,
    path: str | Path,
    layout: str = "hf",
    *,
    overwrite: bool = False,
    keep_position_rule: bool = False,
) -> Path:
    """Write `pretrained` to `path` in `layout` (a key of `LAYOUTS`).

    A `path` that ends in .safetensors, .pth, .pt or .bin becomes one file, any other a folder ("hf" and "timm" only). A classifier
    is written where the layout has a place for its kind; Meta's own layout keeps it in a file of its own (`save_head`).
    Positions at other sizes than the trained one follow the implementation whose layout it is; `keep_position_rule` states the
    model's own rule in an "hf" folder, which dinokit follows and transformers ignores.

    Raises:
        OutputError: something is there already.
        WeightsError: the layout can't hold this network.
        ValueError: unknown layout, or a path that does not go with it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}.")
    path = Path(path)
    head = _head_tensors(pretrained.head, layout)
    tensors = _tensors(pretrained, layout, head)
    if path.suffix in (*files.SAFETENSORS_SUFFIXES, *files.PICKLE_SUFFIXES):
        _refuse_existing(path, overwrite)
        return _save_file(pretrained, path, layout, tensors)
    if layout not in FOLDER_LAYOUTS:
        raise ValueError(f"layout {layout!r} is one file: end the path in .safetensors or .pth (or .pt for Birder), not {path.name!r}.")
    _refuse_existing(path, overwrite)
    path.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(path / files.FOLDER_WEIGHTS[0], tensors, {"format": "pt"})
    if layout == "hf":
        files.write_json(path / files.FOLDER_PREPROCESSOR, pretrained.transform.to_hf())
        files.write_json(path / files.FOLDER_CONFIG, hf_config(pretrained.config, head, pretrained.labels, keep_position_rule=keep_position_rule))
    else:
        files.write_json(path / files.FOLDER_CONFIG, timm_config(pretrained.config, pretrained.transform, head))
    return path


def save_head(head: LinearHead, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a classifier as Meta does: the weight and bias of one linear layer, by suffix as a pickle or safetensors."""
    path = Path(path)
    _refuse_existing(path, overwrite)
    tensors = {name: tensor.detach().cpu() for name, tensor in head.linear.state_dict().items()}
    if path.suffix in files.SAFETENSORS_SUFFIXES:
        return files.write_safetensors(path, tensors)
    return files.write_pickle(path, tensors)


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
        raise WeightsError(f"transformers has no place for a position table of {config.image_size} pixels, only for square ones.")
    if not isinstance(config.activation, str):
        raise WeightsError("an activation that is a function can't be written to config.json; name one.")
    ratio = _mlp_ratio(config)
    content: dict[str, Any] = {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "architectures": [f"Dinov2{'WithRegisters' if registers else ''}{'ForImageClassification' if head else 'Model'}"],
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
    arguments: dict[str, Any] = {} if published else {
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "reg_tokens": config.num_register_tokens,
        "mlp_ratio": (2 if config.ffn == "swiglu" else 1) * config.ffn_dim / config.embed_dim,
    }
    return {
        "architecture": f"vit_{widths.get(config.embed_dim, 'base')}_patch{config.patch_size}_{registers}dinov2",
        "num_classes": classes,
        "num_features": config.embed_dim,
        "global_pool": "token",
        "model_args": arguments | {"img_size": list(config.image_size)},
        "pretrained_cfg": transform.to_timm(config.image_size)
        | {"num_classes": classes, "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head", "license": "apache-2.0"},
    }


def _size(config: ViTConfig) -> ViTConfig:
    """The architecture without what timm states elsewhere: image size and position rule."""
    return config.replace(image_size=(518, 518), position=OFFSET_PLAIN)


def birder_container(config: ViTConfig, transform: ImageTransform, classes: int, labels: Mapping[int, str] | None) -> dict[str, Any]:
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
        "config": {
            "patch_size": config.patch_size,
            "num_layers": config.depth,
            "num_heads": config.num_heads,
            "hidden_dim": config.embed_dim,
            "mlp_dim": config.ffn_dim,
            "num_reg_tokens": config.num_register_tokens,
        },
    }


def _tensors(pretrained: Pretrained, layout: str, head: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    state = {name: tensor.detach().cpu() for name, tensor in pretrained.model.state_dict().items()}
    prefix = ""
    if head and layout.startswith("hf"):
        prefix = "dinov2_with_registers." if pretrained.config.num_register_tokens else "dinov2."
    return from_native(state, layout, head, prefix=prefix)


def _save_file(pretrained: Pretrained, path: Path, layout: str, tensors: Mapping[str, Tensor]) -> Path:
    beside: dict[str, Any] = {}
    if layout.startswith("birder"):
        head = pretrained.head
        classes = head.linear.out_features if head is not None and "classifier.weight" in tensors else 0
        beside = birder_container(pretrained.config, pretrained.transform, classes, pretrained.labels if classes else None)
    if path.suffix in files.SAFETENSORS_SUFFIXES:
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in beside.items()}
        return files.write_safetensors(path, tensors, texts or {"format": "pt", "writer": f"dinokit {__version__}"})
    plain = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    return files.write_pickle(path, {"state": plain, **beside} if beside else plain)


def _head_tensors(head: LinearHead | None, layout: str) -> dict[str, Tensor] | None:
    if head is None:
        return None
    if head.inputs not in _HEAD_FITS[layout]:
        if layout == "official":
            return None
        raise WeightsError(
            f"layout {layout!r} has no place for a classifier that reads {head.inputs}; load the model without it, or write it alone with save_head."
        )
    return {name: tensor.detach().cpu() for name, tensor in head.linear.state_dict().items()}


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


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"{path} exists already; choose another name, or allow it to be replaced (overwrite).")


