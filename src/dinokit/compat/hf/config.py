"""`Dinov2Config` and `Dinov2WithRegistersConfig`: the documented configurations, and their translation to `ViTConfig`.

Promise: argument order, defaults and errors are those of the documents (transformers 4.34 and, for registers, 4.48).
Source: transformers' documentation pages "DINOv2" and "DINOv2 with Registers".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dinokit.compat.hf import translate
from dinokit.compat.hf.config_base import PretrainedConfig
from dinokit.compat.hf.stages import aligned, stage_names
from dinokit.config import Activation, ViTConfig

# transformers 5 reads config.json by strict types: an int where it expects a float is refused, and the reverse.
_FLOATS = ("initializer_range", "layer_norm_eps", "layerscale_value", "interpolate_offset")
_BOOLS = (
    "qkv_bias",
    "use_swiglu_ffn",
    "apply_layernorm",
    "reshape_hidden_states",
    "use_mask_token",
    "interpolate_antialias",
)


class Dinov2ConfigBase(PretrainedConfig):
    """What both kinds share; see `Dinov2Config`."""

    model_type: ClassVar[str]

    # Position numerics, read from files that state them. As class attributes they are written only where they were set.
    interpolate_offset: float = 0.0
    interpolate_antialias: bool = False

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: float | int
    hidden_act: Activation
    hidden_dropout_prob: float | int
    attention_probs_dropout_prob: float | int
    initializer_range: float
    layer_norm_eps: float
    image_size: int | Sequence[int]
    patch_size: int | Sequence[int]
    num_channels: int
    qkv_bias: bool
    layerscale_value: float | int
    drop_path_rate: float | int
    use_swiglu_ffn: bool
    apply_layernorm: bool
    reshape_hidden_states: bool

    @property
    def register_count(self) -> int:
        """Registers of the network; 0 for the kind without."""
        raise NotImplementedError

    @property
    def has_mask_token(self) -> bool:
        """Whether the network has a mask token."""
        raise NotImplementedError

    def _set_architecture(self, values: Mapping[str, Any], extra: dict[str, Any]) -> None:
        """Set the named `values` (a constructor's locals) and then `extra`, its unknown keywords."""
        extra.pop("stage_names", None)  # follows from num_hidden_layers
        super().__init__(**extra)
        own = ("self", "kwargs", "__class__", "out_features", "out_indices")
        for name, value in values.items():
            if name not in own:
                setattr(self, name, value)
        self.stage_names = stage_names(self.num_hidden_layers)
        self._stages = aligned(self.stage_names, values["out_features"], values["out_indices"])

    @property
    def out_features(self) -> list[str]:
        """Names of the stages that a backbone gives; setting them sets `out_indices`, None means the last stage."""
        return self._stages.features

    @out_features.setter
    def out_features(self, features: list[str] | None) -> None:
        self._stages = aligned(self.stage_names, features, None)

    @property
    def out_indices(self) -> list[int]:
        """Indices of the stages that a backbone gives; setting them sets `out_features`, None means the last stage."""
        return self._stages.indices

    @out_indices.setter
    def out_indices(self, indices: Sequence[int] | None) -> None:
        self._stages = aligned(self.stage_names, None, indices)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in new containers, with the number types that transformers 5 insists on."""
        found = super().to_dict()
        found["out_features"], found["out_indices"] = list(self.out_features), list(self.out_indices)
        found.update({name: float(found[name]) for name in _FLOATS if name in found})
        found.update({name: bool(found[name]) for name in _BOOLS if name in found})
        if float(self.mlp_ratio).is_integer():
            found["mlp_ratio"] = int(self.mlp_ratio)
        for name in ("image_size", "patch_size"):
            if isinstance(found[name], tuple):
                found[name] = list(found[name])
        return found

    @classmethod
    def _overridden(cls, content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        stale = set()
        if {"num_hidden_layers", "out_features", "out_indices"} & changes.keys():
            stale = {"out_features", "out_indices"}
        kept = {name: value for name, value in content.items() if name not in stale}
        return super()._overridden(kept, changes)

    def to_vit_config(self) -> ViTConfig:
        """The native configuration of the same network.

        Raises:
            ValueError: values that no network can have, or out of bounds (checked before memory is asked for).
        """
        return translate.to_vit(self)

    @classmethod
    def from_vit_config(cls, vit: ViTConfig, **kwargs: Any) -> Dinov2ConfigBase:
        """The configuration of a native one, as where a file has tensors only. Position numerics stay this kind's default.

        Raises:
            ValueError: stochastic depth that differs between blocks, which these classes can't say.
        """
        values = translate.from_vit(vit)
        if cls.model_type == "dinov2_with_registers":
            values["num_register_tokens"] = vit.num_register_tokens
        return cls(**values, **kwargs)


class Dinov2Config(Dinov2ConfigBase):
    """Of DINOv2 without registers. Further keywords are those of `PretrainedConfig`; unknown ones are kept and saved.

    Sizes are in pixels; `image_size` is that of the trained position table (one number, or height and width), other images
    are accepted all the same. `mlp_ratio` gives the hidden width of the feed-forward network from `hidden_size`.
    `hidden_act` is a name ("gelu", "relu", "selu", "gelu_new", ...) or a function. `drop_path_rate` holds for every block.
    `out_features` or `out_indices`, `apply_layernorm` and `reshape_hidden_states` are about `Dinov2Backbone`.
    `use_mask_token=False` leaves the mask token out. Positions at other sizes: `interpolate_offset` (default 0.0; Meta's own
    models of this kind and transformers 4.34 use 0.1) and `interpolate_antialias` (default false).

    Raises:
        ValueError: stages that do not exist, disagree or are out of order; see also `PretrainedConfig`.
    """

    model_type = "dinov2"
    use_mask_token: bool

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: float | int = 4,
        hidden_act: Activation = "gelu",
        hidden_dropout_prob: float | int = 0.0,
        attention_probs_dropout_prob: float | int = 0.0,
        initializer_range: float | int = 0.02,
        layer_norm_eps: float | int = 1e-6,
        image_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        layerscale_value: float | int = 1.0,
        drop_path_rate: float | int = 0.0,
        use_swiglu_ffn: bool = False,
        out_features: list[str] | None = None,
        out_indices: Sequence[int] | None = None,
        apply_layernorm: bool = True,
        reshape_hidden_states: bool = True,
        use_mask_token: bool = True,
        **kwargs: Any,
    ) -> None:
        self._set_architecture(locals(), kwargs)

    @property
    def register_count(self) -> int:
        """None of them, whatever unknown keys say."""
        return 0

    @property
    def has_mask_token(self) -> bool:
        """As configured."""
        return bool(self.use_mask_token)


class Dinov2WithRegistersConfig(Dinov2ConfigBase):
    """Of DINOv2 with registers: as `Dinov2Config`, with `num_register_tokens` (0 or more) as the 17th argument.

    Positions at other sizes are resampled with `interpolate_offset` 0.0 and `interpolate_antialias` true, as by Meta's own
    models and by transformers.
    """

    model_type = "dinov2_with_registers"
    interpolate_antialias = True
    num_register_tokens: int

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: float | int = 4,
        hidden_act: Activation = "gelu",
        hidden_dropout_prob: float | int = 0.0,
        attention_probs_dropout_prob: float | int = 0.0,
        initializer_range: float | int = 0.02,
        layer_norm_eps: float | int = 1e-6,
        image_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        layerscale_value: float | int = 1.0,
        drop_path_rate: float | int = 0.0,
        use_swiglu_ffn: bool = False,
        num_register_tokens: int = 4,
        out_features: list[str] | None = None,
        out_indices: Sequence[int] | None = None,
        apply_layernorm: bool = True,
        reshape_hidden_states: bool = True,
        **kwargs: Any,
    ) -> None:
        self._set_architecture(locals(), kwargs)

    @property
    def register_count(self) -> int:
        """As configured."""
        return self.num_register_tokens

    @property
    def has_mask_token(self) -> bool:
        """Always, as in every file of this kind."""
        return True


CONFIG_CLASSES: dict[str, type[Dinov2Config] | type[Dinov2WithRegistersConfig]] = {
    "dinov2": Dinov2Config,
    "dinov2_with_registers": Dinov2WithRegistersConfig,
}
"""`model_type` to class."""
