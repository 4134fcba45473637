"""Read-only views of the native network under the names that transformers' users reach for.

They hold no parameters of their own: writing into a tensor that a view gives writes into the network.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dinokit.model import VisionTransformer
from dinokit.model.layers import PatchEmbed


class EncoderView(NamedTuple):
    """`model.encoder`: `layer` holds the blocks; a forward hook on one sees the sequence after it."""

    layer: nn.ModuleList


class EmbeddingsView(NamedTuple):
    """`model.embeddings`: the tensors that enter before the first block. Calling it gives the sequence that enters there."""

    vit: VisionTransformer

    @property
    def cls_token(self) -> Float[Tensor, "1 1 d"]:
        """The class token, without its position."""
        return self.vit.cls_token

    @property
    def mask_token(self) -> Float[Tensor, "1 d"]:
        """What stands for a masked patch; zeros in all released files but giant's."""
        return self.vit.mask_token

    @property
    def register_tokens(self) -> Float[Tensor, "1 r d"]:
        """The registers; empty for a model without."""
        return self.vit.register_tokens

    @property
    def position_embeddings(self) -> Float[Tensor, "1 positions d"]:
        """The trained table: the class token's position, then the patches' row by row."""
        return self.vit.pos_embed

    @property
    def patch_embeddings(self) -> PatchEmbed:
        """Patches to tokens; its convolution is `proj`."""
        return self.vit.patch_embed

    @property
    def dropout(self) -> nn.Dropout:
        """Dropout on the whole sequence."""
        return self.vit.embed_dropout

    def __call__(
        self, pixel_values: Float[Tensor, "b c h w"], bool_masked_pos: Shaped[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The sequence that enters the first block."""
        return self.vit.embed(pixel_values, bool_masked_pos)
