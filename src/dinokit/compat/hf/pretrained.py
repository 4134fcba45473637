"""`PreTrainedModel`: the base of the models, with `from_pretrained` and `save_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dinokit.compat.hf import loading, saving
from dinokit.compat.hf.base import ModelBase


class PreTrainedModel(ModelBase):
    """A model that is read from files and written to them."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *, config: Any = None, **kwargs: Any
    ) -> Any:
        """The model of a folder, a file or a hub name, in evaluation mode; see `loading.load_pretrained` for all keywords."""
        return loading.load_pretrained(
            {cls.config_class.model_type: cls}, pretrained_model_name_or_path, config, **kwargs
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        *,
        safe_serialization: bool = True,
        max_shard_size: int | str = "5GB",
    ) -> None:
        """Write config.json and the weights as safetensors into a folder; transformers opens it. See `saving.save_model`."""
        if is_main_process:
            saving.save_model(self, save_directory, state_dict, safe_serialization, max_shard_size)
