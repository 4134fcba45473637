"""`VisionTransformer`: an image batch to `Tokens`, for every published DINOv2 network and any other size of it.

Zero registers is an empty tensor (1, 0, d), so there is no branch on registers. Parameter names are those of Meta's files.
Source: Oquab et al. 2023 (DINOv2); Darcet et al. 2024 (registers).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinokit.config import ViTConfig
from dinokit.model.layers import Block, PatchEmbed
from dinokit.model.posembed import PositionCache
from dinokit.tokens import Tokens


class VisionTransformer(nn.Module):
    """DINOv2's vision transformer with 0 to n registers.

    Height and width may be anything of at least one patch; pixels past the last whole patch are dropped (transformers'
    rule). Initialised as in Meta's code; `dinokit.load` gives trained weights.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        d = config.embed_dim
        self.patch_embed = PatchEmbed(config.num_channels, d, config.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, d))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid[0] * config.grid[1], d))
        self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, d))
        self.mask_token = nn.Parameter(torch.empty(1, d))
        self.embed_dropout = nn.Dropout(config.embed_dropout)
        rates = config.drop_path or (0.0,) * config.depth
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.positions = PositionCache()
        self.checkpoint_options: dict[str, Any] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Meta's code does.

        Linear weights and positions truncated normal of 0.02, biases and mask token 0, class and register tokens normal of
        1e-6; layer scale as configured, the convolution as PyTorch does.
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens.numel():
            nn.init.normal_(self.register_tokens, std=1e-6)
        nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """(Rows, columns) of patches for an image of this many pixels.

        Raises:
            ValueError: not even one patch fits.
        """
        p = self.config.patch_size
        if height < p or width < p:
            raise ValueError(f"the image is {height} x {width} pixels (height x width); one patch needs {p} x {p}.")
        return height // p, width // p

    def embed(
        self, images: Float[Tensor, "b c h w"], masks: Shaped[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """The sequence that enters the first block. Where `masks` is true, the mask token stands for the patch.

        Registers get no position. Among the released files only giant's mask token is trained; the others hold zeros.
        """
        config = self.config
        if images.ndim != 4 or images.shape[1] != config.num_channels:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (batch, {config.num_channels}, height, width)."
            )
        grid = self.grid_of(images.shape[-2], images.shape[-1])
        x = self.patch_embed(images)
        if masks is not None:
            if masks.shape != x.shape[:2]:
                raise ValueError(
                    f"masks have shape {tuple(masks.shape)}; expected (batch, patches) = {tuple(x.shape[:2])}."
                )
            x = torch.where(masks.bool()[..., None], self.mask_token.to(x.dtype), x)
        positions = self.positions.get(self.pos_embed, config.grid, grid, config.position)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + positions
        x = torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        return self.embed_dropout(x)  # type: ignore[no-any-return]

    def run_block(
        self,
        index: int,
        x: Float[Tensor, "b t d"],
        head_mask: Float[Tensor, "depth heads"] | None = None,
        grid: tuple[int, int] | None = None,  # noqa: ARG002 - for repaired forms, some of which look at neighbours
    ) -> Float[Tensor, "b t d"]:
        """The sequence after block `index`, with activation checkpointing where it is switched on.

        The one place in which a repaired form of the network (`dinokit.repair`) differs from it.
        """
        block = self.blocks[index]
        head_scale = None if head_mask is None else head_mask[index]
        if self.checkpoint_options is not None and torch.is_grad_enabled():
            return checkpoint(block, x, head_scale, **self.checkpoint_options)  # type: ignore[no-any-return]
        return block(x, head_scale)  # type: ignore[no-any-return]

    def block_weights(self, index: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b heads t keys"]:
        """Attention after the softmax in block `index`, given the sequence that enters it."""
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block.attn.weights(block.norm1(x))

    def stream(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Shaped[Tensor, "b n"] | None = None,
        head_mask: Float[Tensor, "depth heads"] | None = None,
    ) -> Iterator[Float[Tensor, "b t d"]]:
        """The residual stream: the sequence after the embedding, then after each block; depth + 1 in all, none normed.

        Stop reading to stop computing.
        """
        grid = self.grid_of(images.shape[-2], images.shape[-1])
        x = self.embed(images, masks)
        yield x
        for index in range(self.config.depth):
            x = self.run_block(index, x, head_mask, grid)
            yield x

    def tokens(self, sequence: Float[Tensor, "b t d"], image_size: tuple[int, int]) -> Tokens:
        """Name the parts of a sequence that came from an image of (height, width) pixels."""
        return Tokens(sequence, self.config.num_register_tokens, self.grid_of(*image_size))

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        masks: Shaped[Tensor, "b n"] | None = None,
        head_mask: Float[Tensor, "depth heads"] | None = None,
    ) -> Tokens:
        """Tokens after the final layer norm.

        `images` are normalised pixels. `masks` says which patches the mask token replaces. `head_mask` scales heads
        (1 keeps, 0 removes).
        """
        grid = self.grid_of(images.shape[-2], images.shape[-1])
        x = self.embed(images, masks)
        for index in range(self.config.depth):  # not `stream`: a generator would not compile as one graph
            x = self.run_block(index, x, head_mask, grid)
        return self.tokens(self.norm(x), (images.shape[-2], images.shape[-1]))

    def set_gradient_checkpointing(self, enabled: bool, *, use_reentrant: bool = False, **options: Any) -> None:
        """Recompute each block in the backward pass instead of keeping its activations; values and gradients are the same."""
        self.checkpoint_options = {"use_reentrant": use_reentrant, **options} if enabled else None
