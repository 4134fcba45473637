"""The entry points of Meta's torch.hub: eight networks, and each with its classifier.

Promise: positions are resampled as Meta's code does, whatever file the weights come from.
Source: hubconf.py, dinov2/hub/backbones.py and dinov2/hub/classifiers.py (facebookresearch/dinov2), behaviour only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dinokit.compat.hub.net import HubBackbone, HubClassifier
from dinokit.config import VARIANTS, PositionRule, ViTConfig, linear_drop_path
from dinokit.errors import WeightsError
from dinokit.model import VisionTransformer
from dinokit.model.unfilled import unfilled
from dinokit.weights import files, zoo
from dinokit.weights.hub import fetch_url
from dinokit.weights.load import Pretrained
from dinokit.weights.load import load as load_pretrained

RELEASED, RELEASED_HEAD = "LVD142M", "IMAGENET1K"  # Meta's names of its own weights
SETTINGS = ("layer_scale_init", "drop_path", "position")  # fields of a configuration that no weights depend on


def wrap(model: VisionTransformer | Pretrained) -> HubBackbone:
    """Meta's face of a model that is there already. Parameters are shared; positions are resampled by the model's own rule."""
    return HubBackbone(model.model if isinstance(model, Pretrained) else model)


def load(name: str, **options: Any) -> HubBackbone | HubClassifier:
    """What the entry point `name` (a key of `ENTRY_POINTS`) gives, as `torch.hub.load` would.

    Raises:
        ValueError: no such entry point.
    """
    if name not in ENTRY_POINTS:
        raise ValueError(f"no entry point {name!r}; there are {', '.join(ENTRY_POINTS)}.")
    return ENTRY_POINTS[name](**options)


def backbone(
    variant: str,
    *,
    pretrained: bool = True,
    weights: str | Path = RELEASED,
    img_size: int | None = None,
    in_chans: int | None = None,
    init_values: float = 1.0,
    drop_path_rate: float = 0.0,
    drop_path_uniform: bool = False,
    interpolate_offset: float | None = None,
    interpolate_antialias: bool | None = None,
) -> HubBackbone:
    """A network of the table `VARIANTS`, in training mode as Meta's hub leaves it.

    `weights` is "LVD142M", the released ones, or a path to a file of any layout. Without `pretrained` it is random, for images of
    `img_size` (518) with `in_chans` (3) channels and layer scales of `init_values`; weights must be of that size and these channels.

    Raises:
        WeightsError: the weights are of another network.
        HubError: the released weights are not on disk, and Meta's server can't be reached.
    """
    released = VARIANTS[variant]
    offset, antialias = released.position
    rates = (drop_path_rate,) * released.depth
    config = released.replace(
        image_size=released.image_size if img_size is None else (img_size, img_size),
        num_channels=released.num_channels if in_chans is None else in_chans,
        layer_scale_init=init_values,
        drop_path=rates if drop_path_uniform else linear_drop_path(drop_path_rate, len(rates)),
        position=PositionRule(
            offset if interpolate_offset is None else interpolate_offset,
            antialias if interpolate_antialias is None else interpolate_antialias,
        ),
    )
    if not pretrained:
        return HubBackbone(VisionTransformer(config))
    found = load_pretrained(f"dinov2_{variant}" if weights == RELEASED else weights)
    return HubBackbone(_as_configured(found, config, variant))


def classifier(
    variant: str,
    *,
    layers: Literal[1, 4] = 4,
    pretrained: bool = True,
    weights: str | Path = RELEASED_HEAD,
    **options: Any,
) -> HubClassifier:
    """The same with a linear classifier of 1000 classes on `layers` blocks.

    `weights` is "IMAGENET1K", the released classifier, or a path to one. `options` are those of the backbone, whose own weights
    are `backbone_weights` here.

    Raises:
        ValueError: `layers` is neither 1 nor 4.
        WeightsError: the classifier is of another network or reads another number of blocks.
    """
    if layers not in (1, 4):
        raise ValueError(f"layers is {layers}; Meta's classifiers read 1 or 4 blocks.")
    body = backbone(variant, pretrained=pretrained, weights=options.pop("backbone_weights", RELEASED), **options)
    if not pretrained:
        return HubClassifier(body, nn.Linear((layers + 1) * body.embed_dim, 1000), layers)
    if weights == RELEASED_HEAD:
        release = zoo.SOURCES[f"dinov2_{variant}"].release
        assert release is not None
        weights = fetch_url(zoo.head_url(release, layers), ())
    return HubClassifier(body, _linear(weights, (layers + 1) * body.embed_dim), layers)


def _linear(path: str | Path, features: int) -> nn.Linear:
    tensors = files.read(path).tensors
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if len(tensors) != 2 or weight is None or bias is None or weight.shape != (len(bias), features):
        shapes = {name: tuple(tensor.shape) for name, tensor in list(tensors.items())[:4]}
        raise WeightsError(f"{path} holds {shapes}; expected a weight (classes, {features}) and a bias (classes).")
    linear = nn.Linear(features, len(bias))
    linear.load_state_dict(tensors)
    return linear


def _as_configured(found: Pretrained, config: ViTConfig, variant: str) -> VisionTransformer:
    """The loaded network with the settings of `config`, which must be of the same architecture."""
    wrong = [
        f"{field.name} is {has}, expected {wanted}"
        for field in dataclasses.fields(config)
        if field.name not in SETTINGS
        and (has := getattr(found.config, field.name)) != (wanted := getattr(config, field.name))
    ]
    if wrong:
        raise WeightsError(f"{found.provenance.path} does not fit {variant}: {', '.join(wrong)}.")
    with unfilled():
        vit = VisionTransformer(config)
    vit.load_state_dict(found.model.state_dict(), strict=True, assign=True)
    return vit.requires_grad_(True)


dinov2_vits14 = functools.partial(backbone, "vits14")
dinov2_vitb14 = functools.partial(backbone, "vitb14")
dinov2_vitl14 = functools.partial(backbone, "vitl14")
dinov2_vitg14 = functools.partial(backbone, "vitg14")
dinov2_vits14_reg = functools.partial(backbone, "vits14_reg")
dinov2_vitb14_reg = functools.partial(backbone, "vitb14_reg")
dinov2_vitl14_reg = functools.partial(backbone, "vitl14_reg")
dinov2_vitg14_reg = functools.partial(backbone, "vitg14_reg")
dinov2_vits14_lc = functools.partial(classifier, "vits14")
dinov2_vitb14_lc = functools.partial(classifier, "vitb14")
dinov2_vitl14_lc = functools.partial(classifier, "vitl14")
dinov2_vitg14_lc = functools.partial(classifier, "vitg14")
dinov2_vits14_reg_lc = functools.partial(classifier, "vits14_reg")
dinov2_vitb14_reg_lc = functools.partial(classifier, "vitb14_reg")
dinov2_vitl14_reg_lc = functools.partial(classifier, "vitl14_reg")
dinov2_vitg14_reg_lc = functools.partial(classifier, "vitg14_reg")

ENTRY_POINTS: dict[str, Callable[..., HubBackbone | HubClassifier]] = {
    "dinov2_vits14": dinov2_vits14,
    "dinov2_vitb14": dinov2_vitb14,
    "dinov2_vitl14": dinov2_vitl14,
    "dinov2_vitg14": dinov2_vitg14,
    "dinov2_vits14_reg": dinov2_vits14_reg,
    "dinov2_vitb14_reg": dinov2_vitb14_reg,
    "dinov2_vitl14_reg": dinov2_vitl14_reg,
    "dinov2_vitg14_reg": dinov2_vitg14_reg,
    "dinov2_vits14_lc": dinov2_vits14_lc,
    "dinov2_vitb14_lc": dinov2_vitb14_lc,
    "dinov2_vitl14_lc": dinov2_vitl14_lc,
    "dinov2_vitg14_lc": dinov2_vitg14_lc,
    "dinov2_vits14_reg_lc": dinov2_vits14_reg_lc,
    "dinov2_vitb14_reg_lc": dinov2_vitb14_reg_lc,
    "dinov2_vitl14_reg_lc": dinov2_vitl14_reg_lc,
    "dinov2_vitg14_reg_lc": dinov2_vitg14_reg_lc,
}
"""Every entry point by name: the eight networks, and each with its classifier ("_lc")."""
