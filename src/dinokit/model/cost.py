"""Parameters and floating-point operations of a network, from its configuration alone (nothing is built).

One multiply-add counts as two operations; matrix products and attention are counted, norms and activations are not.
"""

from __future__ import annotations

from dinokit.config import ViTConfig


def num_parameters(config: ViTConfig) -> int:
    """Of the network without a classifier, as `VisionTransformer` holds them."""
    d, h = config.embed_dim, config.ffn_dim
    patches = config.grid[0] * config.grid[1]
    tokens = d * (1 + (1 + patches) + config.num_register_tokens + 1)  # class, positions, registers, mask
    conv = d * config.num_channels * config.patch_size**2 + d
    attention = 3 * d * d + (3 * d if config.qkv_bias else 0) + d * d + d
    ffn = (2 * h * d + 2 * h + d * h + d) if config.ffn == "swiglu" else (2 * d * h + h + d)
    block = attention + ffn + 4 * d + 2 * d  # two norms, two layer scales
    return tokens + conv + config.depth * block + 2 * d


def flops(config: ViTConfig, image_size: tuple[int, int]) -> int:
    """Of one forward pass over one image of (height, width) pixels."""
    d, h = config.embed_dim, config.ffn_dim
    patches = (image_size[0] // config.patch_size) * (image_size[1] // config.patch_size)
    t = config.num_prefix_tokens + patches
    linear = 4 * d * d + (3 if config.ffn == "swiglu" else 2) * d * h
    block = t * linear + 2 * t * t * d  # scores and their product with the values
    conv = patches * d * config.num_channels * config.patch_size**2
    return 2 * (config.depth * block + conv)
