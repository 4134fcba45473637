"""DINOv2 with registers, end to end.

`dinokit.load(name_or_path)` gives a model with its transform; the names of transformers' DINOv2 pages are here too.
Everything is imported on first use, so `import dinokit` costs hardly more than `import torch`.
"""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING, Any

from dinokit._version import __version__

if TYPE_CHECKING:
    from dinokit.compat.hf import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        BitImageProcessor,
        Dinov2Backbone,
        Dinov2Config,
        Dinov2ForImageClassification,
        Dinov2Model,
        Dinov2WithRegistersBackbone,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersModel,
    )
    from dinokit.config import VARIANTS, PositionRule, ViTConfig
    from dinokit.errors import (
        DinokitError,
        HubError,
        IdentityError,
        ImageError,
        OutputError,
        StorageError,
        UnknownModelError,
        WeightsError,
    )
    from dinokit.images import ImageTransform, decode
    from dinokit.model import LinearHead, VisionTransformer
    from dinokit.tokens import Tokens
    from dinokit.weights.load import Pretrained, load
    from dinokit.weights.save import save, save_head

_HOMES = {
    "dinokit.compat.hf": (
        "AutoBackbone",
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModel",
        "AutoModelForImageClassification",
        "BitImageProcessor",
        "Dinov2Backbone",
        "Dinov2Config",
        "Dinov2ForImageClassification",
        "Dinov2Model",
        "Dinov2WithRegistersBackbone",
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersModel",
    ),
    "dinokit.config": ("VARIANTS", "PositionRule", "ViTConfig"),
    "dinokit.errors": (
        "DinokitError",
        "HubError",
        "IdentityError",
        "ImageError",
        "OutputError",
        "StorageError",
        "UnknownModelError",
        "WeightsError",
    ),
    "dinokit.images": ("ImageTransform", "decode"),
    "dinokit.model": ("LinearHead", "VisionTransformer"),
    "dinokit.tokens": ("Tokens",),
    "dinokit.weights.load": ("Pretrained", "load"),
    "dinokit.weights.save": ("save", "save_head"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "VARIANTS",
    "AutoBackbone",
    "AutoConfig",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "BitImageProcessor",
    "DinokitError",
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Model",
    "Dinov2WithRegistersBackbone",
    "Dinov2WithRegistersConfig",
    "Dinov2WithRegistersForImageClassification",
    "Dinov2WithRegistersModel",
    "HubError",
    "IdentityError",
    "ImageError",
    "ImageTransform",
    "LinearHead",
    "OutputError",
    "PositionRule",
    "Pretrained",
    "StorageError",
    "Tokens",
    "UnknownModelError",
    "ViTConfig",
    "VisionTransformer",
    "WeightsError",
    "__version__",
    "decode",
    "load",
    "save",
    "save_head",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dinokit' has no attribute {name!r}")
    value = getattr(_imported(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def _imported(home: str) -> Any:
    """The module. With torch, an import makes half a million objects that stay; looking through them costs a tenth of the start."""
    if not gc.isenabled() or gc.get_freeze_count():
        return importlib.import_module(home)
    gc.disable()
    try:
        return importlib.import_module(home)
    finally:
        # Both together put all objects among the old ones, where the next collection would have put them.
        gc.freeze()
        gc.unfreeze()
        gc.enable()


def __dir__() -> list[str]:
    return __all__
