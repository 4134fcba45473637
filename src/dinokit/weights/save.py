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
from dinokit.atomic import write_json
from dinokit.errors import OutputError, WeightsError
from dinokit.model import LinearHead
from dinokit.weights import files
from dinokit.weights.convert import from_native
from dinokit.weights.describe import birder_container, hf_config, hf_preprocessor, timm_config
from dinokit.weights.layouts import LAYOUTS
from dinokit.weights.load import Pretrained

FOLDER_LAYOUTS = ("hf", "timm")
_HEAD_FITS = {
    "hf": ("cls+mean",),
    "hf5": ("cls+mean",),
    "timm": ("cls",),
    "birder": ("cls",),
    "birder_legacy": ("cls",),
    "official": (),
}


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
    if pretrained.provenance.form:
        raise WeightsError(
            f"this network was repaired ({pretrained.provenance.form}), which no layout can hold; save the network it came from, and "
            f"the calibration beside it."
        )
    path = Path(path)
    head = _head_tensors(pretrained.head, layout)
    tensors = _tensors(pretrained, layout, head)
    if path.suffix in (*files.SAFETENSORS_SUFFIXES, *files.PICKLE_SUFFIXES):
        _refuse_existing(path, overwrite)
        return _save_file(pretrained, path, layout, tensors)
    if layout not in FOLDER_LAYOUTS:
        raise ValueError(
            f"layout {layout!r} is one file: end the path in .safetensors or .pth (or .pt for Birder), not {path.name!r}."
        )
    _refuse_existing(path, overwrite)
    if layout == "hf":
        config = hf_config(pretrained.config, head, pretrained.labels, keep_position_rule=keep_position_rule)
        beside = {files.FOLDER_PREPROCESSOR: hf_preprocessor(pretrained.transform), files.FOLDER_CONFIG: config}
    else:
        beside = {files.FOLDER_CONFIG: timm_config(pretrained.config, pretrained.transform, head)}
    path.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(path / files.FOLDER_WEIGHTS[0], tensors, {"format": "pt"})
    for name, content in beside.items():
        write_json(path / name, content)
    return path


def save_head(head: LinearHead, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a classifier as Meta does: the weight and bias of one linear layer, by suffix as a pickle or safetensors."""
    path = Path(path)
    _refuse_existing(path, overwrite)
    tensors = {name: tensor.detach().cpu() for name, tensor in head.linear.state_dict().items()}
    if path.suffix in files.SAFETENSORS_SUFFIXES:
        return files.write_safetensors(path, tensors)
    return files.write_pickle(path, tensors)


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
        beside = birder_container(
            pretrained.config, pretrained.transform, classes, pretrained.labels if classes else None
        )
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
            f"layout {layout!r} has no place for a classifier that reads {head.inputs}; write it alone with save_head, and the "
            f"model without it (dataclasses.replace(pretrained, head=None))."
        )
    return {name: tensor.detach().cpu() for name, tensor in head.linear.state_dict().items()}


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"{path} exists already; choose another name, or allow it to be replaced (overwrite).")
