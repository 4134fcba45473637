"""`BirderNet`: the native network under the surface of Birder's vision transformer.

Promise: equal numbers, token order [registers, class token, patches], a strict input size unless told otherwise. Thin: it orders
tokens, holds a classifier and changes sizes; blocks, norms and positions are those of `dinokit.model`.
Source: Birder 0.8.4 (birder/net/vit.py, birder/net/base.py), behaviour only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dinokit.compat.birder import names
from dinokit.compat.birder.described import Described
from dinokit.compat.birder.positions import INTERPOLATIONS, Interpolation, resampled
from dinokit.errors import WeightsError
from dinokit.model import VisionTransformer
from dinokit.model.capture import block_indices


class BirderNet(Described):
    """A DINOv2 network as Birder presents it. Takes over `vit`: its parameters are shared and its class position is folded.

    `out_indices` chooses the blocks of `detection_features`; None gives the map of the model cards ("neck").
    `pos_embed_antialias` and `pos_embed_interpolation_mode` are Birder's settings of the same names.

    Raises:
        WeightsError: a SwiGLU network (giant), for which Birder has no names.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        num_classes: int = 0,
        *,
        out_indices: Sequence[int] | None = None,
        pos_embed_antialias: bool = False,
        pos_embed_interpolation_mode: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        if vit.config.ffn != "mlp":
            raise WeightsError("Birder has no SwiGLU network of DINOv2's kind (giant); use dinokit.load.")
        if pos_embed_interpolation_mode not in INTERPOLATIONS:
            raise ValueError(
                f"pos_embed_interpolation_mode is {pos_embed_interpolation_mode!r}; use one of {', '.join(INTERPOLATIONS)}."
            )
        self.vit = vit
        self.dynamic_size = False
        self.pos_embed_antialias = pos_embed_antialias
        self.pos_embed_interpolation_mode = pos_embed_interpolation_mode
        self.set_out_indices(out_indices)
        self.reset_classifier(num_classes)
        _fold_class_position(vit)
        _fix_mask_token(vit)
        names.register(self)

    def forward_features(
        self, x: Float[Tensor, "b c h w"], return_input_embedding: bool = False, attn_mask: Tensor | None = None
    ) -> Float[Tensor, "b t d"] | Float[Tensor, "b t d 2"]:
        """Tokens after the final norm. With `return_input_embedding`, stacked behind the tokens before positions and blocks.

        Raises:
            RuntimeError: another size than the net's, while that is strict.
            ValueError: an `attn_mask`, which dinokit's attention has no place for.
        """
        if attn_mask is not None:
            raise ValueError("attn_mask is not supported; to leave patches out use masked_encoding_omission.")
        patches = self._patches(x)
        tokens = self._encode(self._with_special_tokens(patches + self._positions(x)))
        if return_input_embedding:
            return torch.stack([self._with_special_tokens(patches), tokens], dim=-1)
        return tokens

    def flatten_features(
        self, features: Float[Tensor, "b t d"], include_special_tokens: bool = True
    ) -> Float[Tensor, "b _ d"]:
        """Tokens as they are, or the patches alone."""
        return features if include_special_tokens else features[:, self.num_special_tokens :]

    def embedding_from_features(self, features: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        """The class token."""
        return features[:, self.num_reg_tokens]

    def embedding(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The class token after the final norm."""
        return self.embedding_from_features(self.forward_features(x))

    def classify(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b _"]:
        """Logits; the embedding itself where there are no classes."""
        return self.classifier(x)  # type: ignore[no-any-return]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _"]:
        """Logits; the embedding itself where there are no classes."""
        return self.classify(self.embedding(x))

    def detection_features(self, x: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b d gh gw"]]:
        """Patch maps by name: "neck", after the final norm, or one "stage" for each of `out_indices`, before it."""
        sequence = self._with_special_tokens(self._patches(x) + self._positions(x))
        if self.out_indices is None:
            return {"neck": self._map(self._encode(sequence), x)}
        stages = self._after_blocks(sequence, self.out_indices)
        return {name: self._map(stage, x) for name, stage in zip(self.return_stages, stages, strict=True)}

    def masked_encoding_omission(
        self,
        x: Float[Tensor, "b c h w"],
        ids_keep: Int[Tensor, "b k"] | None = None,
        return_all_features: bool = False,
        return_keys: Literal["all", "tokens", "embedding"] = "tokens",
    ) -> dict[str, Tensor]:
        """Encode only the patches that `ids_keep` numbers; "tokens" (b, t, d), and "embedding" (b, d) where asked for.

        `return_all_features` stacks the tokens after every block on a last axis, only the last of them normed.
        """
        patches = self._patches(x) + self._positions(x)
        if ids_keep is not None:
            patches = patches.gather(1, ids_keep[..., None].expand(-1, -1, patches.shape[2]))
        sequences = self._after_blocks(self._with_special_tokens(patches), range(len(self.vit.blocks)))
        last = self.vit.norm(sequences[-1])
        tokens = torch.stack([*sequences[:-1], last], dim=-1) if return_all_features else last
        return _chosen({"tokens": tokens, "embedding": self.embedding_from_features(last)}, return_keys)

    def masked_encoding_retention(
        self,
        x: Float[Tensor, "b c h w"],
        mask: Shaped[Tensor, "b n"],
        mask_token: Float[Tensor, "..."] | None = None,
        return_keys: Literal["all", "features", "embedding"] = "features",
    ) -> dict[str, Tensor]:
        """Encode with `mask_token` (zero if None) in place of the patches where `mask` is 1.

        "features" (b, d, rows, columns), and "embedding" (b, d) where asked for.
        """
        patches = self._patches(x)
        hidden = mask.to(patches.dtype)[..., None]
        token = patches.new_zeros(1) if mask_token is None else mask_token.reshape(-1)
        tokens = self._encode(self._with_special_tokens(torch.lerp(patches, token, hidden) + self._positions(x)))
        found = {"features": self._map(tokens, x), "embedding": self.embedding_from_features(tokens)}
        return _chosen(found, return_keys)

    def set_out_indices(self, out_indices: Sequence[int] | None) -> None:
        """Choose the maps of `detection_features`: blocks (negative from the end), unnormed, as "stage1" onwards.

        None goes back to "neck", the normed map of the model cards and of Birder up to 0.4.0. Birder 0.4.1 and newer do
        without `out_indices` what `[-1]` does here.
        """
        depth = len(self.vit.blocks)
        self.out_indices = None if out_indices is None else block_indices(list(out_indices), depth)

    def set_dynamic_size(self, dynamic_size: bool = True) -> None:
        """Take any size from now on, resampling positions in each call: bicubic without antialias, unless set otherwise."""
        self.dynamic_size = dynamic_size

    def adjust_size(self, new_size: tuple[int, int]) -> None:
        """Resample the positions once, with antialias, to `new_size` (height, width); from then on that is the net's size.

        Raises:
            AssertionError: no multiples of the patch size, as in Birder.
        """
        height, width = new_size
        if height % self.patch_size or width % self.patch_size:
            raise AssertionError(f"new_size {height} x {width} must be multiples of the patch size {self.patch_size}.")
        vit, old = self.vit, self.vit.pos_embed
        config = vit.config.replace(image_size=(height, width))
        with torch.no_grad():
            table = resampled(vit, config.grid, self.pos_embed_interpolation_mode, antialias=True).clone()
        vit.config = config
        vit.pos_embed = nn.Parameter(table, requires_grad=old.requires_grad)
        vit.positions.clear()

    def adjust_input_channels(self, input_channels: int) -> None:
        """Replace the stem by one for `input_channels`: kernels repeated in turn and scaled by old / new channels.

        For one channel they are summed, so a grey image gives what it gave as three equal channels.
        """
        vit, old = self.vit, self.vit.patch_embed.proj
        vit.config = vit.config.replace(num_channels=input_channels)
        order = torch.arange(input_channels, device=old.weight.device) % old.in_channels
        with torch.no_grad():
            if input_channels == 1:
                kernels = old.weight.sum(dim=1, keepdim=True)
            else:
                kernels = old.weight[:, order] * (old.in_channels / input_channels)
        old.in_channels = input_channels
        old.weight = nn.Parameter(kernels, requires_grad=old.weight.requires_grad)

    def reset_classifier(self, num_classes: int) -> None:
        """A fresh linear classifier on the embedding; none for 0."""
        self.num_classes = num_classes
        token = self.vit.cls_token
        self.classifier: nn.Module = (
            nn.Linear(self.embedding_size, num_classes, device=token.device, dtype=token.dtype)
            if num_classes
            else nn.Identity()
        )

    def freeze(self, freeze_classifier: bool = True, unfreeze_features: bool = False) -> None:
        """No gradients but, where asked for, for the classifier and for the final norm ("features")."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(not freeze_classifier)
        self.vit.norm.requires_grad_(unfreeze_features)

    def freeze_stages(self, up_to_stage: int) -> None:
        """No gradients for the stem, the positions and the first `up_to_stage` blocks."""
        self.vit.patch_embed.requires_grad_(False)
        self.vit.pos_embed.requires_grad_(False)
        for block in self.vit.blocks[:up_to_stage]:
            block.requires_grad_(False)

    def set_grad_checkpointing(
        self, enable: bool = True, *, preserve_rng_state: bool = True, use_reentrant: bool = False
    ) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.vit.set_gradient_checkpointing(enable, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state)

    def _patches(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        return self.vit.patch_embed(x)  # type: ignore[no-any-return]

    def _positions(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 n d"]:
        vit, size = self.vit, (x.shape[-2], x.shape[-1])
        grid = vit.grid_of(*size)
        if grid == vit.config.grid:
            return vit.pos_embed[:, 1:]
        if not self.dynamic_size:
            raise RuntimeError(
                f"the input is {size[0]} x {size[1]} (height x width), the net takes {self.size[0]} x {self.size[1]}: resize "
                f"the image, or call set_dynamic_size() for any size or adjust_size((height, width)) for one other size."
            )
        return resampled(vit, grid, self.pos_embed_interpolation_mode, antialias=self.pos_embed_antialias)[:, 1:]

    def _with_special_tokens(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b t d"]:
        vit = self.vit
        # The class position is zero and no parameter of Birder's: without gradient it stays zero, however long one trains.
        class_token = vit.cls_token + vit.pos_embed[:, :1].detach()
        special = torch.cat([vit.register_tokens, class_token], dim=1).expand(patches.shape[0], -1, -1)
        return torch.cat([special, patches], dim=1)

    def _after_blocks(self, sequence: Float[Tensor, "b t d"], wanted: Collection[int]) -> list[Float[Tensor, "b t d"]]:
        """The sequence after each wanted block, before the final norm; computes no further than the last of them."""
        found = []
        for index in range(max(wanted) + 1):
            sequence = self.vit.run_block(index, sequence)
            if index in wanted:
                found.append(sequence)
        return found

    def _encode(self, sequence: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        (last,) = self._after_blocks(sequence, (len(self.vit.blocks) - 1,))
        return self.vit.norm(last)  # type: ignore[no-any-return]

    def _map(self, tokens: Float[Tensor, "b t d"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d gh gw"]:
        grid = self.vit.grid_of(x.shape[-2], x.shape[-1])
        return tokens[:, self.num_special_tokens :].transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]


def _fold_class_position(vit: VisionTransformer) -> None:
    """Add the class token's position to the class token, as Birder's files have it; outputs stay the same."""
    with torch.no_grad():
        vit.cls_token.add_(vit.pos_embed[:, :1])
        vit.pos_embed[:, :1] = 0


def _fix_mask_token(vit: VisionTransformer) -> None:
    """Birder's network has no mask token: as a parameter it would be one that no gradient ever reaches."""
    token = vit.mask_token.detach()
    del vit.mask_token
    vit.register_buffer("mask_token", token)


def _chosen(found: dict[str, Tensor], keys: str) -> dict[str, Tensor]:
    if keys != "all" and keys not in found:
        raise ValueError(f"return_keys is {keys!r}; use 'all', {' or '.join(map(repr, found))}.")
    return found if keys == "all" else {keys: found[keys]}
