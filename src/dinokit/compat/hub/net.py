"""`HubBackbone` and `HubClassifier`: a network under the surface of Meta's own modules.

Promise: Meta's names, shapes and orders; `state_dict()` holds Meta's names, also where the module is a part of a larger one.
Source: dinov2/models/vision_transformer.py and dinov2/hub/classifiers.py (facebookresearch/dinov2), behaviour only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dinokit.model import VisionTransformer, intermediate_tokens
from dinokit.weights.convert import from_native
from dinokit.weights.layouts import OFFICIAL

STEM = "vit."  # where `HubBackbone` keeps the native network

PatchesAndClass = tuple[Float[Tensor, "b ..."], Float[Tensor, "b d"]]


class HubBackbone(nn.Module):
    """A network as `torch.hub.load("facebookresearch/dinov2", ...)` gives it; parameters are shared with `vit`.

    `head` is the identity, there to be replaced.
    """

    chunked_blocks = False

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.head: nn.Module = nn.Identity()
        config = vit.config
        self.embed_dim = self.num_features = config.embed_dim
        self.patch_size, self.n_blocks, self.num_heads = config.patch_size, config.depth, config.num_heads
        self.num_register_tokens = config.num_register_tokens
        self.interpolate_offset, self.interpolate_antialias = config.position
        _speak_meta(self)

    @property
    def patch_embed(self) -> nn.Module:
        """The convolution that makes patches."""
        return self.vit.patch_embed

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.vit.blocks

    @property
    def norm(self) -> nn.LayerNorm:
        """The final layer norm."""
        return self.vit.norm

    @property
    def cls_token(self) -> nn.Parameter:
        """The class token (1, 1, d)."""
        return self.vit.cls_token

    @property
    def pos_embed(self) -> nn.Parameter:
        """The position table (1, 1 + n, d), the class token's first."""
        return self.vit.pos_embed

    @property
    def mask_token(self) -> nn.Parameter:
        """What stands for a masked patch (1, d)."""
        return self.vit.mask_token

    @property
    def register_tokens(self) -> nn.Parameter | None:
        """The registers (1, r, d); None without, as in Meta's model."""
        return self.vit.register_tokens if self.num_register_tokens else None

    def prepare_tokens_with_masks(
        self, x: Float[Tensor, "b c h w"], masks: Shaped[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The sequence that enters the first block: class token, registers, patches.

        Raises:
            AssertionError: height or width is no multiple of the patch size.
        """
        _check_multiples(x, self.patch_size)
        return self.vit.embed(x, masks)

    def forward_features(
        self,
        x: Float[Tensor, "b c h w"] | Sequence[Float[Tensor, "_ c _ _"]],
        masks: Shaped[Tensor, "b n"] | Sequence[Shaped[Tensor, "_ _"] | None] | None = None,
    ) -> Any:
        """A dict of x_norm_clstoken (b, d), x_norm_regtokens (b, r, d), x_norm_patchtokens (b, n, d), x_prenorm (b, t, d), masks.

        For a list of batches, with their masks in a list or None, a list of such dicts. x_prenorm is the whole sequence before
        the final norm; without registers r is 0.
        """
        if not isinstance(x, Tensor):
            each = [None] * len(x) if masks is None else masks
            return [self.forward_features(image, mask) for image, mask in zip(x, each, strict=True)]
        assert masks is None or isinstance(masks, Tensor)
        sequence = self.prepare_tokens_with_masks(x, masks)
        for index in range(self.n_blocks):
            sequence = self.vit.run_block(index, sequence)
        tokens = self.vit.tokens(self.vit.norm(sequence), (x.shape[-2], x.shape[-1]))
        return {
            "x_norm_clstoken": tokens.cls,
            "x_norm_regtokens": tokens.registers,
            "x_norm_patchtokens": tokens.patches,
            "x_prenorm": sequence,
            "masks": masks,
        }

    def get_intermediate_layers(
        self,
        x: Float[Tensor, "b c h w"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Float[Tensor, "b ..."], ...] | tuple[PatchesAndClass, ...]:
        """Patches of the last `n` blocks, or of the blocks that `n` lists, always ascending; class token and registers cut off.

        (b, n, d) each, or (b, d, rows, columns) with `reshape`; pairs with the class token (b, d) if asked for. `norm` applies
        the final norm to each.

        Raises:
            AssertionError: height or width is no multiple of the patch size.
            ValueError: a block out of range, or one twice (Meta: an AssertionError).
        """
        _check_multiples(x, self.patch_size)
        layers = intermediate_tokens(self.vit, x, n, norm=norm)
        patches = tuple(layer.patch_map.contiguous() if reshape else layer.patches for layer in layers)
        if return_class_token:
            return tuple(zip(patches, (layer.cls for layer in layers), strict=True))
        return patches

    def forward(self, x: Any, masks: Any = None, *, is_training: bool = False) -> Any:
        """The class token (b, d) through `head`; with `is_training`, what `forward_features` gives."""
        features = self.forward_features(x, masks)
        return features if is_training else self.head(features["x_norm_clstoken"])


class HubClassifier(nn.Module):
    """A backbone with Meta's linear classifier.

    It reads the class tokens of the last `layers` blocks, oldest first, and the mean patch of the last, all after the final norm.
    """

    def __init__(self, backbone: HubBackbone, linear_head: nn.Linear, layers: Literal[1, 4] = 4) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear_head = linear_head
        self.layers = layers

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Logits."""
        _check_multiples(x, self.backbone.patch_size)
        layers = intermediate_tokens(self.backbone.vit, x, self.layers)
        features = [*(layer.cls for layer in layers), layers[-1].patches.mean(dim=1)]
        return self.linear_head(torch.cat(features, dim=-1))  # type: ignore[no-any-return]


def _check_multiples(x: Float[Tensor, "b c h w"], patch_size: int) -> None:
    height, width = x.shape[-2:]
    if height % patch_size or width % patch_size:
        raise AssertionError(
            f"the image is {height} x {width} pixels (height x width); both must be multiples of the patch size {patch_size}. "
            f"Resize, crop or pad it, or use dinokit's own models, which leave the rest out."
        )


def _speak_meta(net: nn.Module) -> None:
    """State dicts of `net` in Meta's names."""
    net.register_state_dict_post_hook(_write)
    net.register_load_state_dict_pre_hook(_read)
    net.register_load_state_dict_post_hook(_rename_missing)


def _write(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
    """Native names are Meta's; only the place in this module goes, and the registers where there are none."""
    stem = prefix + STEM
    native = {name.removeprefix(stem): state.pop(name) for name in list(state) if name.startswith(stem)}
    state.update((prefix + name, tensor) for name, tensor in from_native(native, OFFICIAL).items())


def _read(net: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    vit = net.get_submodule("vit")
    for name, parameter in vit.state_dict().items():
        if prefix + name in state:
            state[prefix + STEM + name] = state.pop(prefix + name)
        elif not parameter.numel():
            state[prefix + STEM + name] = parameter


def _rename_missing(_: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = ["".join(key.rpartition(STEM)[::2]) for key in incompatible.missing_keys]
