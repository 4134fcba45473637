"""What a `BirderNet` says of itself, in Birder's words.

Source: attributes of Birder 0.8.4's vision transformer.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from dinokit.compat.birder.positions import Interpolation
from dinokit.model import VisionTransformer
from dinokit.weights.describe import birder_settings


class Described(nn.Module):
    """Abstract: attributes that follow from the native network `vit` and a net's settings; `BirderNet` sets these."""

    vit: VisionTransformer
    out_indices: tuple[int, ...] | None
    pos_embed_antialias: bool
    pos_embed_interpolation_mode: Interpolation

    default_size: ClassVar[tuple[int, int]] = (224, 224)
    task: ClassVar[str] = "image_classification"
    # Birder's expression and what fits `named_parameters`, where the blocks keep their native names.
    block_group_regex: ClassVar[str] = r"(?:encoder\.block|vit\.blocks)\.(\d+)"

    @property
    def size(self) -> tuple[int, int]:
        """(Height, width) in pixels that the net takes."""
        return self.vit.config.image_size

    @property
    def input_channels(self) -> int:
        """Colour channels."""
        return self.vit.config.num_channels

    @property
    def embedding_size(self) -> int:
        """Width of the embedding; of the stem and of the features too."""
        return self.vit.config.embed_dim

    feature_dim = stem_width = embedding_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels; the stride of stem and features too."""
        return self.vit.config.patch_size

    max_stride = stem_stride = patch_size

    @property
    def num_reg_tokens(self) -> int:
        """Register tokens, which come first in the sequence."""
        return self.vit.config.num_register_tokens

    @property
    def num_special_tokens(self) -> int:
        """Tokens before the first patch."""
        return self.vit.config.num_prefix_tokens

    @property
    def return_stages(self) -> list[str]:
        """Keys of `detection_features`."""
        if self.out_indices is None:
            return ["neck"]
        return [f"stage{number}" for number in range(1, len(self.out_indices) + 1)]

    @property
    def return_channels(self) -> list[int]:
        """Channels of each map of `detection_features`."""
        return [self.embedding_size] * len(self.return_stages)

    @property
    def config(self) -> dict[str, Any]:
        """The architecture in Birder's words."""
        config = self.vit.config
        found: dict[str, Any] = {
            "pos_embed_special_tokens": False,
            **birder_settings(config),
            "layer_scale_init_value": 1e-5,
            "drop_path_rate": max(config.drop_path, default=0.0),
            "pos_embed_antialias": self.pos_embed_antialias,
            "pos_embed_interpolation_mode": self.pos_embed_interpolation_mode,
        }
        return found | ({} if self.out_indices is None else {"out_indices": list(self.out_indices)})
