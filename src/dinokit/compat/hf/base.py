"""What all Hugging Face style models share: the network from a configuration, its one run, and the conveniences of users' code.

Promise: fused attention always runs; attention weights are computed again, for the calls that ask for them.
Source: transformers' documentation of `PreTrainedModel`, and its initialisation of DINOv2.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dinokit.compat.hf.config import Dinov2Config, Dinov2ConfigBase, Dinov2WithRegistersConfig
from dinokit.compat.hf.views import EmbeddingsView, EncoderView
from dinokit.model import VisionTransformer
from dinokit.model.capture import block_attention, cast_head_mask
from dinokit.model.layers import LayerScale
from dinokit.model.unfilled import unfilled


class Run(NamedTuple):
    """One pass over the blocks: the sequence after the last one that ran, and what was collected on the way."""

    sequence: Float[Tensor, "b t d"]
    hidden_states: tuple[Float[Tensor, "b t d"], ...] | None
    attentions: tuple[Float[Tensor, "b heads t t"], ...] | None


class ModelBase(nn.Module):
    """Base of the models (but for files, see `pretrained`), which wrap one native `VisionTransformer`.

    `state_dict` and `load_state_dict` speak the hub's names; `named_parameters` has the native ones.

    Raises:
        ValueError: the configuration is of another kind, or no network can have it.
    """

    config_class: ClassVar[type[Dinov2Config] | type[Dinov2WithRegistersConfig]]
    base_model_prefix: ClassVar[str]
    main_input_name: ClassVar[str] = "pixel_values"
    supports_gradient_checkpointing: ClassVar[bool] = True
    framework: ClassVar[str] = "pt"

    def __init__(self, config: Dinov2ConfigBase) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            right = getattr(type(config), "model_type", "")
            raise ValueError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, not a {type(config).__name__}"
                + (f"; for model_type {right!r} use the other twin, or the Auto classes." if right else ".")
            )
        self.config: Any = config
        self.name_or_path = config.name_or_path

    @property
    def network(self) -> VisionTransformer:
        """The native network inside."""
        return self.base_model.vit  # type: ignore[no-any-return]

    @property
    def has_registers(self) -> bool:
        """Whether this is the kind with registers (of which there may be 0)."""
        return self.config_class is Dinov2WithRegistersConfig

    @property
    def base_model(self) -> Any:
        """The model without what was built on it: the attribute `base_model_prefix`, or the model itself."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def embeddings(self) -> EmbeddingsView:
        """A view of what comes before the blocks."""
        return EmbeddingsView(self.network)

    @property
    def encoder(self) -> EncoderView:
        """A view of the blocks."""
        return EncoderView(self.network.blocks)

    @property
    def layernorm(self) -> nn.LayerNorm:
        """The final layer norm."""
        return self.network.norm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.network.cls_token.dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the model has; without the patch embedding's under `exclude_embeddings`."""
        skipped = {id(p) for p in self.network.patch_embed.parameters()} if exclude_embeddings else set()
        return sum(
            p.numel() for p in self.parameters() if id(p) not in skipped and (p.requires_grad or not only_trainable)
        )

    def get_input_embeddings(self) -> nn.Module:
        """The module that turns patches into tokens."""
        return self.network.patch_embed

    def get_output_embeddings(self) -> None:
        """None: no model here predicts tokens."""

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self.network.checkpoint_options is not None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Recompute each block in the backward pass. The keywords go to `torch.utils.checkpoint.checkpoint`."""
        self.network.set_gradient_checkpointing(True, **(gradient_checkpointing_kwargs or {}))

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self.network.set_gradient_checkpointing(False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise as transformers does, not as Meta does.

        Weights, positions and class token normal of `initializer_range`; biases, mask and register tokens 0; layer scale as
        configured.
        """
        vit = self.network
        for drawn in (vit.pos_embed, vit.cls_token):
            nn.init.trunc_normal_(drawn, std=self.config.initializer_range)
        for zero in (vit.mask_token, vit.register_tokens):
            zero.zero_()
        for module in self.modules():
            self._init_layer(module)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, self.config.layerscale_value)

    @torch.no_grad()
    def post_init(self) -> None:
        """Initialise linear and convolution layers outside of the network; for the end of a constructor."""
        inside = {id(module) for module in self.network.modules()}
        for module in self.modules():
            if id(module) not in inside:
                self._init_layer(module)

    def _init_layer(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_network(config: Dinov2ConfigBase) -> VisionTransformer:
    """The native network of a configuration, its memory taken and not yet filled (so that values are drawn only once)."""
    with unfilled():
        vit = VisionTransformer(config.to_vit_config())
    vit.to_empty(device=torch.get_default_device())
    if not config.has_mask_token:
        del vit.mask_token
        vit.register_buffer("mask_token", vit.cls_token.new_zeros(vit.cls_token.shape[1:]), persistent=False)
    return vit


def check_inputs(
    config: Dinov2ConfigBase, pixel_values: Tensor | None, bool_masked_pos: Tensor | None = None
) -> Tensor:
    """The pixels.

    Raises:
        ValueError: there are none; they have another number of channels; masks for a model without a mask token.
    """
    if pixel_values is None:
        raise ValueError("You have to specify pixel_values")
    if pixel_values.ndim == 4 and pixel_values.shape[1] != config.num_channels:
        raise ValueError(
            "Make sure that the channel dimension of the pixel values match with the one set in the configuration."
            f" Expected {config.num_channels} but got {pixel_values.shape[1]}."
        )
    if bool_masked_pos is not None and not config.has_mask_token:
        raise ValueError("bool_masked_pos was given, but this model has no mask token (use_mask_token is false).")
    return pixel_values


def run(
    vit: VisionTransformer,
    pixel_values: Float[Tensor, "b c h w"],
    masks: Shaped[Tensor, "b n"] | None = None,
    head_mask: Float[Tensor, "..."] | None = None,
    *,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    num_blocks: int | None = None,
) -> Run:
    """The first `num_blocks` blocks (all, by default) over a batch. `head_mask` is (heads) or (depth, heads)."""
    scales = cast_head_mask(head_mask, vit.config.depth, vit.config.num_heads)
    x = vit.embed(pixel_values, masks)
    hidden_states: tuple[Tensor, ...] = (x,)
    attentions: tuple[Tensor, ...] = ()
    for index in range(vit.config.depth if num_blocks is None else num_blocks):
        if output_attentions:
            attentions = (*attentions, block_attention(vit, index, x, scales))
        x = vit.run_block(index, x, scales)
        hidden_states = (*hidden_states, x) if output_hidden_states else hidden_states
    return Run(x, hidden_states if output_hidden_states else None, attentions if output_attentions else None)


def told(argument: bool | None, default: bool) -> bool:
    """What a call says, or else what the configuration says."""
    return default if argument is None else argument
