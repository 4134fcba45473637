"""`PretrainedConfig`: what every Hugging Face style configuration does, whatever the model; labels, files, comparison.

Promise: a key that is not known is kept as an attribute and written again; a written config.json opens in transformers 4 and 5.
Source: transformers' documentation of `PretrainedConfig`.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from dinokit.atomic import write_json
from dinokit.compat.hf.checks import PROBLEM_TYPES, check_attention, check_model_type, default_labels, parse_dtype
from dinokit.errors import WeightsError
from dinokit.weights import files
from dinokit.weights.hub import HubOptions, fetch

CONFIG_NAME = "config.json"


class ConfigFileError(WeightsError, OSError):
    """A config.json that is damaged; an `OSError` too, as code written for transformers expects."""


class PretrainedConfig:
    """Base of the configurations; every keyword that is not listed becomes an attribute.

    `return_dict`, `output_attentions` and `output_hidden_states` are what a forward pass does when it is not told.
    `id2label` (or `num_labels`, 2 by default) sizes a classifier; where both are given and disagree, `num_labels` wins with
    a warning. `torch_dtype` (or `dtype`) is what the weights are stored in.

    Raises:
        ValueError: an unknown `problem_type`, dtype or attention implementation.
    """

    model_type: ClassVar[str] = ""
    keys_to_ignore_at_inference: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **kwargs: Any) -> None:
        self.return_dict: bool = kwargs.pop("return_dict", True)
        self.output_hidden_states: bool = kwargs.pop("output_hidden_states", False)
        self.output_attentions: bool = kwargs.pop("output_attentions", False)
        self.architectures: list[str] | None = kwargs.pop("architectures", None)
        self.problem_type: str | None = kwargs.pop("problem_type", None)
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"problem_type is {self.problem_type!r}; it must be one of {', '.join(PROBLEM_TYPES)}, or None."
            )
        given = kwargs.pop("dtype", None)
        self.torch_dtype = parse_dtype(kwargs.pop("torch_dtype", None) or given)
        self._attn_implementation = check_attention(kwargs.pop("attn_implementation", None))
        self._name_or_path = str(kwargs.pop("name_or_path", "") or kwargs.pop("_name_or_path", ""))
        self._set_labels(kwargs.pop("id2label", None), kwargs.pop("label2id", None), kwargs.pop("num_labels", None))
        for unwanted in ("_name_or_path", "model_type"):
            kwargs.pop(unwanted, None)
        for name, value in kwargs.items():
            setattr(self, name, value)

    def _set_labels(
        self, id2label: Mapping[Any, str] | None, label2id: Mapping[str, Any] | None, num_labels: int | None
    ) -> None:
        if id2label is None and label2id is not None:
            id2label = {index: label for label, index in label2id.items()}
        if id2label is not None and num_labels is not None and len(id2label) != num_labels:
            warnings.warn(
                f"num_labels is {num_labels} and id2label has {len(id2label)}: the labels are named anew, LABEL_0 on.",
                stacklevel=4,
            )
            id2label = label2id = None
        if id2label is None:
            self.id2label, self.label2id = default_labels(2 if num_labels is None else num_labels)
            return
        self.id2label = {int(index): label for index, label in id2label.items()}
        self.label2id = dict(label2id or {label: index for index, label in self.id2label.items()})

    @property
    def num_labels(self) -> int:
        """How many classes; setting another number renames them LABEL_0 on."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        if len(self.id2label) != number:
            self.id2label, self.label2id = default_labels(number)

    @property
    def use_return_dict(self) -> bool:
        """Whether models return `ModelOutput`s rather than tuples."""
        return self.return_dict

    @property
    def dtype(self) -> torch.dtype | None:
        """`torch_dtype` under its newer name."""
        return self.torch_dtype

    @dtype.setter
    def dtype(self, value: str | torch.dtype | None) -> None:
        self.torch_dtype = parse_dtype(value)

    @property
    def name_or_path(self) -> str:
        """Where this configuration was read from; not saved."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str | Path) -> None:
        self._name_or_path = str(value)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in new containers; `torch_dtype` as its name."""
        found = {name: copy.deepcopy(value) for name, value in vars(self).items() if not name.startswith("_")}
        found["model_type"] = self.model_type
        found["torch_dtype"] = None if self.torch_dtype is None else str(self.torch_dtype).removeprefix("torch.")
        return found

    def to_diff_dict(self) -> dict[str, Any]:
        """What a config.json holds: `to_dict` without the base fields that have their default."""
        defaults = PretrainedConfig().to_dict()
        return {
            name: value for name, value in self.to_dict().items() if name not in defaults or value != defaults[name]
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """`to_diff_dict` (or `to_dict`) as JSON, keys sorted.

        Raises:
            ValueError: a value has no place in JSON, such as a function as `hidden_act`.
        """
        return json.dumps(self._json_content(use_diff), indent=2, sort_keys=True) + "\n"

    def _json_content(self, use_diff: bool) -> dict[str, Any]:
        content = self.to_diff_dict() if use_diff else self.to_dict()
        for name, value in content.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise ValueError(
                    f"{name} is {value!r}, which a config.json can't hold; set it to a name or number before saving."
                ) from error
        if "id2label" in content:
            content["id2label"] = {str(index): label for index, label in content["id2label"].items()}
        return content

    def to_json_file(self, path: str | Path, use_diff: bool = True) -> None:
        """Write `to_json_string`; the file appears whole or not at all."""
        write_json(path, self._json_content(use_diff))

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json into a folder, which is made where needed.

        Raises:
            ValueError: see `to_json_string`.
            OSError: the folder is a file, or the disk refuses.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        self.to_json_file(Path(save_directory) / CONFIG_NAME)

    def update(self, values: Mapping[str, Any]) -> None:
        """Set attributes."""
        for name, value in values.items():
            setattr(self, name, value)

    @classmethod
    def get_config_dict(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        force_download: bool = False,
        subfolder: str = "",
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of a config.json, of a folder, a file or a hub name; and the keywords that are not about finding it.

        Raises:
            OSError: there is none, or it is not a JSON object.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.is_file():
            options = HubOptions(
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
                force_download=force_download,
            )
            name = f"{subfolder}/{CONFIG_NAME}" if subfolder else CONFIG_NAME
            path = fetch(pretrained_model_name_or_path, name, options)
        try:
            return files.read_json(path), kwargs
        except WeightsError as error:
            raise ConfigFileError(str(error)) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The configuration of a folder, a config.json or a hub name, with keywords overriding what it says.

        Takes the keywords of `get_config_dict` and `from_dict`; for what it gives and raises see there.

        Raises:
            ValueError: it describes another kind of model; the message names the class to use.
        """
        content, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_model_type(cls.__name__, cls.model_type, content, str(pretrained_model_name_or_path))
        content["_name_or_path"] = str(pretrained_model_name_or_path)
        return cls.from_dict(content, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> PretrainedConfig:
        """The configuration of one file."""
        return cls(**files.read_json(Path(json_file)))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The configuration of a dict, with keywords overriding what it says.

        A keyword that is no attribute of the configuration comes back in a second value under `return_unused_kwargs`;
        otherwise it is left out with a warning.
        """
        probe = cls(**config_dict)
        known = {name: value for name, value in kwargs.items() if hasattr(probe, name) or name == "attn_implementation"}
        unused = {name: value for name, value in kwargs.items() if name not in known}
        config = cls(**cls._overridden(dict(config_dict), known)) if known else probe
        if return_unused_kwargs:
            return config, unused
        if unused:
            warnings.warn(f"{cls.__name__} has no {', '.join(sorted(unused))}; left out.", stacklevel=2)
        return config

    @classmethod
    def _overridden(cls, content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """`content` with `changes`, without the entries that the changes make stale."""
        if (
            "num_labels" in changes
            and "id2label" not in changes
            and len(content.get("id2label") or ()) != changes["num_labels"]
        ):
            content = {name: value for name, value in content.items() if name not in ("id2label", "label2id")}
        if "id2label" in changes:
            content = {name: value for name, value in content.items() if name not in ("num_labels", "label2id")}
        if "dtype" in changes:
            content = {name: value for name, value in content.items() if name != "torch_dtype"}
        return {**content, **changes}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # a configuration can change

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_diff_dict(), indent=2, sort_keys=True, default=repr)}"
