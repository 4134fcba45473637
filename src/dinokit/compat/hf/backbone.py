"""`Dinov2Backbone` and its twin: feature maps of chosen stages, for detection and segmentation frameworks.

Promise: maps are (b, d, rows, columns), rows from the image's height; blocks after the last stage asked for do not run.
Source: transformers 5.23's DINOv2 backbone (4.34 swapped rows and columns).
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dinokit.compat.hf import naming
from dinokit.compat.hf.base import build_network, check_inputs, run, told
from dinokit.compat.hf.config import Dinov2ConfigBase
from dinokit.compat.hf.modeling import Dinov2PreTrainedModel, Dinov2WithRegistersPreTrainedModel
from dinokit.compat.hf.outputs import BackboneOutput
from dinokit.compat.hf.pretrained import PreTrainedModel
from dinokit.model import VisionTransformer


class Backbone(PreTrainedModel):
    """The network as a backbone. `out_features` and `out_indices` may be set, and then change the configuration too."""

    def __init__(self, config: Dinov2ConfigBase) -> None:
        super().__init__(config)
        self.vit = build_network(config)
        naming.install(self)
        self.init_weights()
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.stage_names = list(config.stage_names)

    @property
    def network(self) -> VisionTransformer:
        """The native network."""
        return self.vit

    @property
    def out_features(self) -> list[str]:
        """Names of the stages whose maps are given."""
        return self.config.out_features  # type: ignore[no-any-return]

    @out_features.setter
    def out_features(self, features: list[str] | None) -> None:
        self.config.out_features = features

    @property
    def out_indices(self) -> list[int]:
        """Indices of the stages whose maps are given."""
        return self.config.out_indices  # type: ignore[no-any-return]

    @out_indices.setter
    def out_indices(self, indices: Sequence[int] | None) -> None:
        self.config.out_indices = indices

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Stage to channels, of all stages."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """Channels of the maps that are given."""
        return [self.out_feature_channels[name] for name in self.out_features]

    def forward_with_filtered_kwargs(self, pixel_values: Float[Tensor, "b c h w"], **kwargs: bool | None) -> object:
        """`forward` without the keywords that it does not have; for frameworks that serve many backbones."""
        known = ("output_hidden_states", "output_attentions", "return_dict")
        return self(pixel_values, **{name: value for name, value in kwargs.items() if name in known})

    def forward(
        self,
        pixel_values: Float[Tensor, "b c h w"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[object, ...]:
        """Feature maps of the stages of `out_features`; see `BackboneOutput`.

        The configuration's `apply_layernorm` and `reshape_hidden_states` shape them. The other arguments, the tuple and the
        errors are those of the bare model.
        """
        config, vit = self.config, self.vit
        pixels = check_inputs(config, pixel_values)
        hidden_wanted = told(output_hidden_states, config.output_hidden_states)
        attentions_wanted = told(output_attentions, config.output_attentions)
        stages = [self.stage_names.index(name) for name in self.out_features]
        found = run(
            vit,
            pixels,
            output_attentions=attentions_wanted,
            output_hidden_states=True,
            num_blocks=None if hidden_wanted or attentions_wanted else max(stages, default=0),
        )
        hidden_states = found.hidden_states or ()
        output = BackboneOutput(
            feature_maps=tuple(self._feature_map(hidden_states[stage], pixels) for stage in stages),
            hidden_states=hidden_states if hidden_wanted else None,
            attentions=found.attentions,
        )
        return output if told(return_dict, config.use_return_dict) else output.to_tuple()

    def _feature_map(self, x: Float[Tensor, "b t d"], pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        if self.config.apply_layernorm:
            x = self.vit.norm(x)
        if not self.config.reshape_hidden_states:
            return x
        return self.vit.tokens(x, (pixels.shape[-2], pixels.shape[-1])).patch_map.contiguous()


class Dinov2Backbone(Backbone, Dinov2PreTrainedModel):
    """DINOv2 without registers as a backbone."""


class Dinov2WithRegistersBackbone(Backbone, Dinov2WithRegistersPreTrainedModel):
    """DINOv2 with registers as a backbone."""
