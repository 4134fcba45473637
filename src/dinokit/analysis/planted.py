"""The planted model: a small vision transformer whose artefacts are built in by hand, so that every number has a closed form.

It was constructed and learned nothing; it is for teaching and for testing tools, and says nothing about images. It has what
trained networks have: one block whose feed-forward neurons write a huge vector at a few patches, and attention that then drains there.
Source: the mechanism is that of Jiang et al. 2025 (arXiv 2506.08010), Proposition 1, and Darcet et al. 2024, sections 2.1 and 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dinokit.config import ViTConfig

EMBED_DIM, DEPTH, NUM_HEADS, FFN_DIM, PATCH_SIZE = 64, 4, 2, 32, 4
GRID = (4, 4)
UNIT = math.sqrt(EMBED_DIM)  # norm of an ordinary token: layer norm of it is the token itself

# Numbers of the directions (see `direction`) that have a meaning.
MARKER, HIGH, SECOND, CLS, LOCKED = 0, 1, 2, 5, 6
FIRST_PATCH, NUM_PATCH_CODES = 8, 16
FIRST_REGISTER, MAX_REGISTERS = 24, 9

OUTLIER_BLOCK = 2
"""The block that writes the outliers; they are in the stream from layer 3 on (layer 0 is the embedding)."""
READOUT_CHANNEL = 2 * HIGH
"""The channel of the class token in which the last block's attention leaves what it gathered."""
REGISTER_NEURONS = ((OUTLIER_BLOCK, 3), (OUTLIER_BLOCK, 7))
"""(Block, neuron) of the two that write the outliers."""
OUTLIER_NORM = math.sqrt(UNIT**2 + 300.0**2 + 40.0**2)


def direction(index: int) -> Float64[Tensor, "64"]:
    """Unit direction number 0 to 31: (+1, -1)/sqrt(2) on channels 2 index and 2 index + 1. They are orthogonal and of mean zero.

    Layer norm of a token made of them is the token times sqrt(64)/norm, with nothing else in it.
    """
    vector = torch.zeros(EMBED_DIM, dtype=torch.float64)
    vector[2 * index], vector[2 * index + 1] = math.sqrt(0.5), -math.sqrt(0.5)
    return vector


def planted(num_registers: int = 0, locked: Mapping[int, float] | None = None) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Configuration and weights of the planted model: `VisionTransformer(config).load_state_dict(weights)` builds it.

    64 wide, 4 blocks, 2 heads that do the same, 32 neurons, patches of 4 pixels, image 16 x 16; all that is not named here is zero.

    * Tokens: patch i of `planted_image` is 8 e_(8 + i), a marker patch 8 e_0, the class token 8 e_5. All norms are 8.
    * Block 2, feed-forward: neuron 3 is 20 where the token is e_0, else 0, and writes 15 e_1; neuron 7 is 8 there and writes
      5 e_2; neuron 11 is 25 everywhere and writes nothing. So markers become 8 e_0 + 300 e_1 + 40 e_2, of norm 302.7606.
    * Block 3, attention: all queries ask for e_1 with scores 6 cos(x, e_1), so the class token gives each of two markers 0.49037;
      what it gathers, cos(x, e_1) of its keys, stands in `READOUT_CHANNEL`: 0.9718. Neuron 5 follows e_1 and writes nothing.

    `num_registers` adds registers: the first starts at 8 e_0 and so becomes an outlier itself (norm 302.7606, attention 0.95739 where
    no patch is a marker), the others at codes of their own that do nothing. `locked` maps patch numbers to the length of a vector
    e_6 that their position carries whatever the image: an artefact that stays in its place when the image is shifted.

    Raises:
        ValueError: more than 9 registers, or a locked patch outside of the 16.
    """
    if not 0 <= num_registers <= MAX_REGISTERS:
        raise ValueError(f"num_registers is {num_registers}; the planted model has codes for 0 to {MAX_REGISTERS}.")
    config = ViTConfig(
        embed_dim=EMBED_DIM,
        depth=DEPTH,
        num_heads=NUM_HEADS,
        ffn_dim=FFN_DIM,
        patch_size=PATCH_SIZE,
        image_size=(GRID[0] * PATCH_SIZE, GRID[1] * PATCH_SIZE),
        num_register_tokens=num_registers,
        layer_norm_eps=1e-12,  # tokens have variance 1, so the usual 1e-6 would show in the sixth digit
    )
    weights = _embedding(num_registers, locked or {})
    for index in range(DEPTH):
        weights |= {f"blocks.{index}.{name}": value for name, value in _empty_block().items()}
    _plant_outliers(weights, f"blocks.{OUTLIER_BLOCK}.")
    _plant_sink(weights, f"blocks.{DEPTH - 1}.")
    return config, {name: value.float() for name, value in weights.items()}


def planted_image(
    outliers: Iterable[int] = (3, 9), grid: tuple[int, int] = GRID, codes: Iterable[int] | None = None
) -> Float[Tensor, "1 3 h w"]:
    """The input in which the patches `outliers` (row by row) are markers: one image, to be given to the model as it is.

    A marker is red all over. Of any other patch one pixel is green, the place of which says which e_(8 + code) the token is; `codes`
    are the patch's numbers modulo 16 if not given.

    Raises:
        ValueError: an outlier outside of the grid, or codes that are not one in 0 to 15 for each patch.
    """
    num = grid[0] * grid[1]
    chosen, places = set(outliers), [i % NUM_PATCH_CODES for i in range(num)] if codes is None else list(codes)
    if not chosen <= set(range(num)):
        raise ValueError(f"outliers {sorted(chosen)}: the patches of a grid {grid} are 0 to {num - 1}.")
    if len(places) != num or not set(places) <= set(range(NUM_PATCH_CODES)):
        raise ValueError(f"codes must be {num} numbers in 0 to {NUM_PATCH_CODES - 1}, one a patch.")
    patches = torch.zeros(num, 3, PATCH_SIZE * PATCH_SIZE)
    for patch, place in enumerate(places):
        if patch in chosen:
            patches[patch, 0] = 1.0
        else:
            patches[patch, 1, place] = 1.0
    cells = patches.view(*grid, 3, PATCH_SIZE, PATCH_SIZE).permute(2, 0, 3, 1, 4)
    return cells.reshape(1, 3, grid[0] * PATCH_SIZE, grid[1] * PATCH_SIZE)


def _embedding(num_registers: int, locked: Mapping[int, float]) -> dict[str, Tensor]:
    num = GRID[0] * GRID[1]
    if not set(locked) <= set(range(num)):
        raise ValueError(f"locked patches {sorted(locked)}: the planted model has positions 0 to {num - 1}.")
    filters = _zeros(EMBED_DIM, 3, PATCH_SIZE * PATCH_SIZE)
    filters[:, 0] = UNIT / PATCH_SIZE**2 * direction(MARKER)[:, None]  # the mean of red
    for place in range(NUM_PATCH_CODES):
        filters[:, 1, place] = UNIT * direction(FIRST_PATCH + place)
    positions = _zeros(1, 1 + num, EMBED_DIM)
    for patch, length in locked.items():
        positions[0, 1 + patch] = length * direction(LOCKED)
    registers = _zeros(1, num_registers, EMBED_DIM)
    for index in range(num_registers):
        registers[0, index] = UNIT * direction(MARKER if index == 0 else FIRST_REGISTER + index - 1)
    return {
        "patch_embed.proj.weight": filters.view(EMBED_DIM, 3, PATCH_SIZE, PATCH_SIZE),
        "patch_embed.proj.bias": _zeros(EMBED_DIM),
        "cls_token": UNIT * direction(CLS).view(1, 1, -1),
        "pos_embed": positions,
        "register_tokens": registers,
        "mask_token": _zeros(1, EMBED_DIM),
        "norm.weight": _zeros(EMBED_DIM) + 1,
        "norm.bias": _zeros(EMBED_DIM),
    }


def _empty_block() -> dict[str, Tensor]:
    d, hidden = EMBED_DIM, FFN_DIM
    zeros = {
        "norm1.bias": (d,), "norm2.bias": (d,),
        "attn.qkv.weight": (3 * d, d), "attn.qkv.bias": (3 * d,), "attn.proj.weight": (d, d), "attn.proj.bias": (d,),
        "mlp.fc1.weight": (hidden, d), "mlp.fc1.bias": (hidden,), "mlp.fc2.weight": (d, hidden), "mlp.fc2.bias": (d,),
    }  # fmt: skip
    ones = ("norm1.weight", "norm2.weight", "ls1.gamma", "ls2.gamma")
    return {name: _zeros(*shape) for name, shape in zeros.items()} | {name: _zeros(d) + 1 for name in ones}


def _plant_outliers(weights: dict[str, Tensor], block: str) -> None:
    """Neurons see 8 cos(x, e_0); biases of -20 make GELU exactly 0 where the cosine is 0."""
    marker = direction(MARKER)
    reads, bias = weights[block + "mlp.fc1.weight"], weights[block + "mlp.fc1.bias"]
    writes = weights[block + "mlp.fc2.weight"]
    reads[3], bias[3], writes[:, 3] = 40 / UNIT * marker, -20.0, 15 * direction(HIGH)
    reads[7], bias[7], writes[:, 7] = 28 / UNIT * marker, -20.0, 5 * direction(SECOND)
    bias[11] = 25.0


def _plant_sink(weights: dict[str, Tensor], block: str) -> None:
    """In both heads: query constant in its channel 0, key 6 sqrt(width) cos(x, e_1) there, value cos(x, e_1) in its channel 1."""
    head_dim, high = EMBED_DIM // NUM_HEADS, direction(HIGH)
    qkv, bias = weights[block + "attn.qkv.weight"], weights[block + "attn.qkv.bias"]
    for start in range(0, EMBED_DIM, head_dim):
        bias[start] = 1.0
        qkv[EMBED_DIM + start] = 6 * math.sqrt(head_dim) / UNIT * high
        qkv[2 * EMBED_DIM + start + 1] = high / UNIT
        # sqrt(2) e_1 is +1 and -1 on its two channels, so the first of them reads the gathered value directly
        weights[block + "attn.proj.weight"][:, start + 1] = math.sqrt(2) / NUM_HEADS * high
    weights[block + "mlp.fc1.weight"][5], weights[block + "mlp.fc1.bias"][5] = 60 / UNIT * high, -20.0


def _zeros(*shape: int) -> Float64[Tensor, "..."]:
    return torch.zeros(shape, dtype=torch.float64)
