"""`from_pretrained`: any checkpoint that dinokit reads, as one of the Hugging Face style models.

Promise: strict. A tensor that is missing, left over, misshaped or not finite is refused; only a classifier may be absent (then
it is drawn anew, with a warning) or be left out. Nothing is guessed from a name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinokit.compat.hf.base import ModelBase
from dinokit.compat.hf.checks import CLASS_PREFIXES, check_model_type, parse_dtype
from dinokit.compat.hf.config import CONFIG_CLASSES, Dinov2ConfigBase
from dinokit.compat.hf.config_base import PretrainedConfig
from dinokit.compat.hf.filling import fill
from dinokit.errors import WeightsError
from dinokit.model.unfilled import unfilled
from dinokit.weights import files, hub
from dinokit.weights.beside import check_claims, look_beside
from dinokit.weights.convert import Converted, to_native
from dinokit.weights.files import Checkpoint
from dinokit.weights.infer import infer_config

Classes = Mapping[str, type[ModelBase]]

# Keywords of transformers that change nothing here: loading never doubles memory, never runs code, never resumes halfway.
WITHOUT_EFFECT = ("low_cpu_mem_usage", "trust_remote_code", "resume_download", "use_safetensors", "_fast_init")


def load_pretrained(
    classes: Classes,
    name_or_path: str | Path | None,
    config: Any = None,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
    subfolder: str = "",
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    output_loading_info: bool = False,
    ignore_mismatched_sizes: bool = False,
    device_map: object = None,
    **kwargs: Any,
) -> Any:
    """A model of the one of `classes` (by `model_type`) that the checkpoint belongs to, in evaluation mode.

    `name_or_path` is a folder, a file of any layout (.safetensors, .pth, .pt), or a name; a folder of that name comes before the
    hub. `config` is a configuration, or where to read one; else it is read beside the weights, or told from their shapes.
    `state_dict` takes the place of the weights. `dtype` (or `torch_dtype`) is float32 unless asked; "auto" means that of the
    configuration or the file. Other keywords override the configuration, such as `num_labels=7`. With
    `ignore_mismatched_sizes` tensors of another shape are drawn anew. `output_loading_info` gives (model, dict of lists).

    Raises:
        OSError: there is no such model, or the hub can't be reached.
        ValueError: see the promise above; another kind of model (named in the message); `device_map`.
        TypeError: a keyword that is neither known nor an attribute of the configuration.
    """
    if device_map is not None:
        raise ValueError("device_map is not supported: a DINOv2 network fits on one device; call model.to(device).")
    options = hub.HubOptions(
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        force_download=force_download,
    )
    overrides = {name: value for name, value in kwargs.items() if name not in WITHOUT_EFFECT}
    if isinstance(config, str | Path):
        config = read_config(config, options)
    checkpoint = _read(name_or_path, config, state_dict, subfolder, options)
    source = "the state dict" if state_dict is not None else str(checkpoint.path)
    content = _config_content(checkpoint, name_or_path) if config is None else None
    if content is not None:
        _pick(classes, str(content["model_type"]), source)  # a wrong class is said before a wrong tensor is
    converted = _converted(checkpoint, source)
    if config is None:
        config = _configured(content or _told_by_shapes(checkpoint, converted, source), name_or_path, overrides)
    else:
        config = _overridden(copy.deepcopy(config), overrides)
    cls = _pick(classes, config.model_type, source)
    _check_kind(config, converted, source)
    config.torch_dtype = _dtype(dtype if dtype is not None else torch_dtype, config, checkpoint)
    model, info = fill(
        cls,
        config,
        converted,
        _extra(cls, config, converted, checkpoint, source),
        source,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        fewer_layers="num_hidden_layers" in overrides,
    )
    return (model, vars(info)) if output_loading_info else model


def read_config(name_or_path: str | Path, options: hub.HubOptions) -> Dinov2ConfigBase:
    """The configuration of a folder, file or hub name, of the class that its `model_type` names.

    Raises:
        OSError: there is none.
        ValueError: another `model_type`.
    """
    content, _ = PretrainedConfig.get_config_dict(name_or_path, **vars(options))
    return _configured(content, name_or_path, {})


def _read(
    name_or_path: str | Path | None,
    config: Any,
    state_dict: Mapping[str, Tensor] | None,
    subfolder: str,
    options: hub.HubOptions,
) -> Checkpoint:
    """The weights with what lies beside them; with a state dict only what lies beside is read."""
    if state_dict is not None:
        beside = None
        if name_or_path is not None and config is None:
            beside, _ = PretrainedConfig.get_config_dict(name_or_path, subfolder=subfolder, **vars(options))
        return Checkpoint(dict(state_dict), Path(str(name_or_path or "")), (), config=beside)
    if name_or_path is None:
        raise ValueError("there is nothing to load from: give a name, a path or a state_dict.")
    path = Path(name_or_path)
    if subfolder and not path.is_dir():
        hub.fetch(name_or_path, f"{subfolder}/{files.FOLDER_CONFIG}", options)
        path = hub.fetch(name_or_path, f"{subfolder}/{files.FOLDER_WEIGHTS[0]}", options).parent
    else:
        path = hub.fetch_model(path / subfolder if subfolder else name_or_path, options)
    if path.is_dir() and (missing := _nothing_in(path)):
        raise hub.MissingFileError(missing)
    return files.read(path)


def _nothing_in(folder: Path) -> str:
    """What to say of a folder without weights; transformers' users catch an `OSError` there."""
    if any((folder / name).exists() for name in files.FOLDER_WEIGHTS):
        return ""
    return f"{folder} holds none of {', '.join(files.FOLDER_WEIGHTS)}."


def _config_content(checkpoint: Checkpoint, name_or_path: str | Path | None) -> dict[str, Any] | None:
    """The config.json beside the weights, where it is of this kind (timm's is another)."""
    found = checkpoint.config
    if found is None or not {"model_type", "hidden_size"} & found.keys():
        return None
    return {"model_type": "dinov2", **found, "_name_or_path": str(name_or_path or "")}


def _told_by_shapes(checkpoint: Checkpoint, converted: Converted, source: str) -> dict[str, Any]:
    beside = look_beside(checkpoint, converted)
    vit = infer_config(converted, beside.hints, source=source)
    check_claims(vit, beside, converted, source)
    labels: dict[str, Any] = {}
    if converted.head is not None and "weight" in converted.head:
        labels = {"num_labels": converted.head["weight"].shape[0]}
    if beside.labels:
        labels = {"id2label": beside.labels}
    cls = CONFIG_CLASSES["dinov2_with_registers" if converted.num_registers else "dinov2"]
    return cls.from_vit_config(vit, **labels).to_dict()


def _configured(
    content: Mapping[str, Any], name_or_path: str | Path | None, overrides: Mapping[str, Any]
) -> Dinov2ConfigBase:
    cls = CONFIG_CLASSES.get(str(content.get("model_type")))
    if cls is None:
        raise ValueError(
            f"{name_or_path} has model_type {content.get('model_type')!r}; supported are {', '.join(CONFIG_CLASSES)}."
        )
    config, unknown = cls.from_dict(content, return_unused_kwargs=True, **overrides)
    _refuse_unknown(cls, unknown)
    return config  # type: ignore[no-any-return]


def _overridden(config: Dinov2ConfigBase, overrides: Mapping[str, Any]) -> Dinov2ConfigBase:
    if not overrides:
        return config
    changed, unknown = type(config).from_dict(config.to_dict(), return_unused_kwargs=True, **overrides)
    _refuse_unknown(type(config), unknown)
    return changed  # type: ignore[no-any-return]


def _refuse_unknown(cls: type[PretrainedConfig], unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise TypeError(
            f"from_pretrained got unexpected keywords: {', '.join(unknown)}; {cls.__name__} has none of them."
        )


def _pick(classes: Classes, kind: str, source: str) -> type[ModelBase]:
    if kind not in classes:
        (cls,) = classes.values() if len(classes) == 1 else (None,)
        if cls is None:
            raise ValueError(f"{source} has model_type {kind!r}; supported are {', '.join(classes)}.")
        check_model_type(cls.__name__, cls.config_class.model_type, {"model_type": kind}, source)
    return classes[kind]


def _check_kind(config: Dinov2ConfigBase, converted: Converted, source: str) -> None:
    """Refuse weights with registers for the kind without, which would drop them, and the reverse."""
    if bool(converted.num_registers) != bool(config.register_count):
        with_registers = converted.num_registers > 0
        right = CLASS_PREFIXES["dinov2_with_registers" if with_registers else "dinov2"]
        raise WeightsError(
            f"{source} has {converted.num_registers} register tokens, and the configuration ({type(config).__name__}) says "
            f"{config.register_count}: use the {right} classes (model_type "
            f"{'dinov2_with_registers' if with_registers else 'dinov2'!r} in config.json), or the Auto classes."
        )


def _converted(checkpoint: Checkpoint, source: str) -> Converted:
    """Native tensors; what no layout knows is reported in it, and `_extra`'s to judge."""
    floats = {name: tensor for name, tensor in checkpoint.tensors.items() if tensor.is_floating_point()}
    converted = to_native(floats, source=source, strict=False)
    if converted.missing:  # raises, and says which
        to_native(checkpoint.tensors, source=source)
    return converted


def _extra(
    cls: type[ModelBase], config: Dinov2ConfigBase, converted: Converted, checkpoint: Checkpoint, source: str
) -> dict[str, Tensor]:
    """Tensors that no layout knows and that a model of the user's has outside of the network, counters included.

    Raises:
        WeightsError: a tensor that it does not have either.
    """
    tensors = checkpoint.tensors
    strange = {name for name, tensor in tensors.items() if not tensor.is_floating_point()} | set(converted.unexpected)
    if not strange:
        return {}
    with unfilled():
        own = cls(config).state_dict().keys()
    extra = {name: tensors[name] for name in sorted(strange & own & tensors.keys())}
    if len(extra) < len(strange):  # raises, and says which
        to_native({name: tensor for name, tensor in tensors.items() if name not in extra}, source=source)
    return extra


def _dtype(asked: str | torch.dtype | None, config: Dinov2ConfigBase, checkpoint: Checkpoint) -> torch.dtype:
    if asked == "auto":
        return config.torch_dtype or next(iter(checkpoint.tensors.values())).dtype
    return parse_dtype(asked) or torch.float32
