"""`AutoConfig`, `AutoModel`, `AutoBackbone`, `AutoModelForImageClassification`: the right twin for a checkpoint.

The kind is what config.json's `model_type` says, or, where there is none, what the tensors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from dinokit.compat.hf.backbone import Dinov2Backbone, Dinov2WithRegistersBackbone
from dinokit.compat.hf.config import CONFIG_CLASSES, Dinov2ConfigBase
from dinokit.compat.hf.config_base import PretrainedConfig
from dinokit.compat.hf.loading import load_pretrained
from dinokit.compat.hf.modeling import (
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)
from dinokit.compat.hf.pretrained import PreTrainedModel


class _Auto:
    """Not for instances: an `OSError` says so, as in transformers."""

    def __init__(self, *_: Any, **__: Any) -> None:
        _refuse(type(self).__name__)


def _refuse(name: str) -> NoReturn:
    raise OSError(f"{name} has no instances; use {name}.from_pretrained(name_or_path).")


class AutoConfig(_Auto):
    """The configuration of a checkpoint, whichever of the two kinds it is."""

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> Any:
        """A configuration of a kind by name.

        Raises:
            ValueError: the name is not supported; the message lists those that are.
        """
        return _config_class(model_type, "AutoConfig.for_model")(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """As `PretrainedConfig.from_pretrained`.

        Raises:
            OSError: there is no configuration.
            ValueError: its `model_type` is not supported; the message lists those that are.
        """
        content, kwargs = PretrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = _config_class(content.get("model_type"), str(pretrained_model_name_or_path))
        content["_name_or_path"] = str(pretrained_model_name_or_path)
        return kind.from_dict(content, **kwargs)


class _AutoModel(_Auto):
    """What the three kinds of model share."""

    classes: ClassVar[Mapping[str, type[PreTrainedModel]]]

    @classmethod
    def from_config(cls, config: Dinov2ConfigBase) -> Any:
        """A model with fresh weights.

        Raises:
            ValueError: a configuration of another library or kind.
        """
        kind = str(getattr(config, "model_type", ""))
        if kind not in cls.classes or not isinstance(config, CONFIG_CLASSES[kind]):
            raise ValueError(
                f"{cls.__name__} does not know {type(config).__name__}; supported are "
                f"{', '.join(known.__name__ for known in CONFIG_CLASSES.values())}."
            )
        return cls.classes[kind](config)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *, config: Any = None, **kwargs: Any
    ) -> Any:
        """The model of a folder, a file or a hub name; keywords and errors as in `loading.load_pretrained`."""
        return load_pretrained(cls.classes, pretrained_model_name_or_path, config, **kwargs)


class AutoModel(_AutoModel):
    """The bare model."""

    classes = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}  # noqa: RUF012


class AutoBackbone(_AutoModel):
    """The model as a backbone."""

    classes = {"dinov2": Dinov2Backbone, "dinov2_with_registers": Dinov2WithRegistersBackbone}  # noqa: RUF012


class AutoModelForImageClassification(_AutoModel):
    """The model with a classifier."""

    classes = {  # noqa: RUF012
        "dinov2": Dinov2ForImageClassification,
        "dinov2_with_registers": Dinov2WithRegistersForImageClassification,
    }


def _config_class(kind: Any, source: str) -> Any:
    if kind not in CONFIG_CLASSES:
        raise ValueError(f"{source}: model_type {kind!r} is not supported; supported are {', '.join(CONFIG_CLASSES)}.")
    return CONFIG_CLASSES[kind]
