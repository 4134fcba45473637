"""Loading under Birder's names: `load_pretrained_model` and what goes with it.

The walk is that of `dinokit.load`; here it begins with a registered name, or any path that `dinokit.load` takes, and ends in a
`BirderNet`. Source: Birder 0.8.4, birder/common/fs_ops.py and its registry, behaviour only.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dinokit.atomic import write_atomically
from dinokit.compat.birder.net import BirderNet
from dinokit.compat.birder.transforms import classification_transform
from dinokit.config import ViTConfig, linear_drop_path
from dinokit.errors import UnknownModelError, WeightsError
from dinokit.images import ImageTransform
from dinokit.model import LinearHead, VisionTransformer
from dinokit.weights import files, hub, zoo
from dinokit.weights.load import Pretrained, load

# Birder's registry trains its base and large networks with this rate, the small one without.
DROP_PATH_RATE = 0.1
DROP_PATH_SIZES = ((768, 12), (1024, 24))  # (width, blocks)

# Settings of Birder's networks that a net can be given; the others that a file may state are said by its tensors too.
SETTINGS = ("out_indices", "pos_embed_antialias", "pos_embed_interpolation_mode")
CONFIGURABLE = (*SETTINGS, "drop_path_rate")

Signature = dict[str, list[dict[str, list[int]]]]


class UnknownWeightsError(UnknownModelError, KeyError):
    """No such name or path. Also a `KeyError`, which is what Birder raises."""


class ModelInfo(NamedTuple):
    """What Birder keeps beside the weights.

    `signature` has the input's shape [0, channels, height, width] (0 stands for the batch) and the output's [0, classes];
    `rgb_stats` has "mean" and "std"; `custom_config` are the settings that the file states, if it does.
    """

    class_to_idx: dict[str, int]
    signature: Signature
    rgb_stats: dict[str, tuple[float, float, float]]
    custom_config: dict[str, Any] | None = None


def load_pretrained_model(
    weights: str | Path,
    *,
    dst: str | Path | None = None,
    file_format: str = "pt",
    inference: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    new_size: tuple[int, int] | None = None,
    custom_config: Mapping[str, Any] | None = None,
    progress_bar: bool = True,
) -> tuple[BirderNet, ModelInfo]:
    """(Net, what is known of it) for a registered name, or for whatever else `dinokit.load` reads.

    A registered file is checked against its published sha256. `dst` is where it shall lie; by default it lies in the hub's
    cache. With `inference` the net is in evaluation mode and without gradients, else in training mode with Birder's
    stochastic depth. `new_size` (height, width) is adjusted to, and the signature says so. `custom_config` may set
    out_indices, pos_embed_antialias, pos_embed_interpolation_mode and drop_path_rate.

    Raises:
        UnknownWeightsError: no such name or path.
        FileExistsError: `dst` holds another file.
        HubError: not on disk, and the hub can't be reached or refuses.
        WeightsError: damaged, incomplete, or a network that Birder has no place for.
        ValueError: a format that is not published, or a setting that can't be followed.
    """
    chosen = dict(custom_config or {})
    if unknown := sorted(chosen.keys() - set(CONFIGURABLE)):
        raise ValueError(f"custom_config sets {', '.join(unknown)}; supported are {', '.join(CONFIGURABLE)}.")
    with _progress(progress_bar):
        pretrained = _load(weights, dst, file_format, dtype)
    stated = _stated(pretrained)
    settings = {**(stated or {}), **chosen}
    vit, head = pretrained.model, pretrained.head
    _set_drop_path(vit, float(settings.get("drop_path_rate", default_drop_path(vit.config))))
    net = BirderNet(vit, **{key: settings[key] for key in SETTINGS if key in settings})
    if head is not None:
        _take_head(net, head, pretrained.provenance.name)
    if new_size is not None:
        net.adjust_size(new_size)
    net.to(device).train(not inference).requires_grad_(not inference)
    class_to_idx = {label: index for index, label in (pretrained.labels or {}).items()}
    transform = pretrained.transform
    return net, ModelInfo(class_to_idx, _signature(net), {"mean": transform.mean, "std": transform.std}, stated)


def load_pretrained_model_and_transform(
    weights: str | Path,
    *,
    dst: str | Path | None = None,
    file_format: str = "pt",
    inference: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    new_size: tuple[int, int] | None = None,
    custom_config: Mapping[str, Any] | None = None,
    naflex: bool = False,
    classification_kwargs: Mapping[str, Any] | None = None,
    progress_bar: bool = True,
) -> tuple[BirderNet, ModelInfo, ImageTransform]:
    """The same with the transform that the net's images need; `classification_kwargs` go to `classification_transform`.

    Raises:
        ValueError: `naflex`, which no DINOv2 network is, besides the errors of `load_pretrained_model`.
    """
    if naflex:
        raise ValueError("naflex=True: DINOv2's networks are not of that kind; set_dynamic_size() takes any size.")
    net, info = load_pretrained_model(
        weights,
        dst=dst,
        file_format=file_format,
        inference=inference,
        device=device,
        dtype=dtype,
        new_size=new_size,
        custom_config=custom_config,
        progress_bar=progress_bar,
    )
    return net, info, classification_transform(net.size, info.rgb_stats, **(classification_kwargs or {}))


def list_pretrained_models(filter: str | None = None) -> list[str]:  # noqa: A002 - Birder's word
    """Registered names, sorted; those that match `filter`, a pattern of `fnmatch`."""
    names = sorted(release.birder for release in zoo.RELEASES if release.birder)
    return names if filter is None else fnmatch.filter(names, filter)


def get_size_from_signature(signature: Mapping[str, Any]) -> tuple[int, int]:
    """(Height, width) of the input."""
    shape = signature["inputs"][0]["data_shape"]
    return int(shape[2]), int(shape[3])


def get_channels_from_signature(signature: Mapping[str, Any]) -> int:
    """Channels of the input."""
    return int(signature["inputs"][0]["data_shape"][1])


def _load(weights: str | Path, dst: str | Path | None, file_format: str, dtype: torch.dtype | None) -> Pretrained:
    source = None if Path(weights).exists() else zoo.lookup(str(weights))
    registered = source if source is not None and source.origin == "birder" else None
    if registered is not None and file_format != "pt":
        raise ValueError(f"file_format is {file_format!r}; of {weights} only 'pt' is published.")
    try:
        if dst is not None:
            if registered is None:
                raise ValueError(f"dst is where a registered file is put; {weights} is none, so leave dst out.")
            weights = _placed(registered, Path(dst))
        return load(weights, dtype=dtype or torch.float32)
    except UnknownModelError as error:
        raise UnknownWeightsError(f"{error} Birder's names: {', '.join(list_pretrained_models())}.") from error


def _placed(source: zoo.Source, dst: Path) -> Path:
    if dst.exists():
        try:
            hub.check_sha256(dst, source.sha256)
        except WeightsError as error:
            raise FileExistsError(f"{dst} is there already and is not {source.name}: {error}") from error
        return dst
    with hub.fetch_model(source.name).open("rb") as file:
        return write_atomically(dst, lambda target: shutil.copyfileobj(file, target))


@contextmanager
def _progress(show: bool) -> Iterator[None]:
    """Whether the hub's client draws its bars; its only switch is one for the whole process."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _stated(pretrained: Pretrained) -> dict[str, Any] | None:
    """The settings that a file of Birder's states; None where it states none or is none."""
    if not pretrained.provenance.layout.startswith("birder"):
        return None
    stated = files.read(pretrained.provenance.path).metadata.get("config") or None
    if isinstance(stated, str):  # as in safetensors
        stated = json.loads(stated)
    return dict(stated) if stated else None


def default_drop_path(config: ViTConfig) -> float:
    """The rate that Birder's registry gives a network of this size."""
    return DROP_PATH_RATE if (config.embed_dim, config.depth) in DROP_PATH_SIZES else 0.0


def _set_drop_path(vit: VisionTransformer, rate: float) -> None:
    rates = linear_drop_path(rate, vit.config.depth)
    vit.config = vit.config.replace(drop_path=rates)
    for block, each in zip(vit.blocks, rates, strict=True):
        block.drop_path1.rate = block.drop_path2.rate = each  # type: ignore[union-attr]


def _take_head(net: BirderNet, head: LinearHead, name: str) -> None:
    if head.inputs != "cls":
        raise WeightsError(
            f"{name} has a classifier that reads {head.inputs}; Birder's reads the class token alone. Load the network without it, "
            f"or use dinokit.load."
        )
    net.reset_classifier(head.linear.out_features)
    assert isinstance(net.classifier, nn.Linear)
    net.classifier.load_state_dict(head.linear.state_dict())


def _signature(net: BirderNet) -> Signature:
    return {
        "inputs": [{"data_shape": [0, net.input_channels, *net.size]}],
        "outputs": [{"data_shape": [0, net.num_classes]}],
    }
