"""The architecture that a set of native tensors belongs to, read off their shapes.

What shapes can't tell (heads, epsilon, a non-square grid, the position rule) comes as `Hints` from the files beside them; a hint
that contradicts a shape is refused, never preferred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dinokit.config import Activation, PositionRule, ViTConfig
from dinokit.errors import WeightsError
from dinokit.model import VisionTransformer
from dinokit.model.unfilled import unfilled
from dinokit.weights.convert import Converted

HEAD_DIM = 64  # of every published DINOv2 network


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What lies beside the tensors; None where nothing was said."""

    num_heads: int | None = None
    image_size: tuple[int, int] | None = None
    layer_norm_eps: float | None = None
    activation: Activation | None = None
    position: PositionRule | None = None
    drop_path: tuple[float, ...] | None = None


def infer_config(converted: Converted, hints: Hints | None = None, *, source: str = "the checkpoint") -> ViTConfig:
    """Architecture of a checkpoint; see `infer_network`."""
    return infer_network(converted, hints, source=source).config


def infer_network(
    converted: Converted, hints: Hints | None = None, *, source: str = "the checkpoint"
) -> VisionTransformer:
    """The network that a checkpoint belongs to, without values; its `config` is the architecture.

    Heads default to width / 64, as in every released network; a square number of positions to a square grid.

    Raises:
        WeightsError: shapes that fit no network, or a hint that contradicts them.
    """
    hints = hints or Hints()
    state, ffn = converted.state, converted.ffn
    embed_dim = _shape(state, "cls_token", 3, source)[2]
    registers = _shape(state, "register_tokens", 3, source)[1]
    conv = _shape(state, "patch_embed.proj.weight", 4, source)
    if conv[2] != conv[3]:
        raise WeightsError(f"{source}: patches of {conv[2]} x {conv[3]} pixels; only square ones are supported.")
    positions = _shape(state, "pos_embed", 3, source)[1] - 1
    inner = _shape(state, "blocks.0.mlp.w3.weight" if ffn == "swiglu" else "blocks.0.mlp.fc2.weight", 2, source)[1]
    heads = hints.num_heads or embed_dim // HEAD_DIM
    if not heads or embed_dim % heads:
        raise WeightsError(
            f"{source}: a width of {embed_dim} can't be {heads} heads. No tensor tells the number of heads (released networks "
            f"have {HEAD_DIM} values a head): give num_heads."
        )
    try:
        config = ViTConfig(
            embed_dim=embed_dim,
            depth=converted.depth,
            num_heads=heads,
            ffn=ffn,
            ffn_dim=inner,
            patch_size=conv[2],
            image_size=_image_size(positions, conv[2], hints.image_size, source),
            num_channels=conv[1],
            num_register_tokens=registers,
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            position=hints.position or converted.layout.position_rule(registers),
        )
        config = config.replace(
            **{
                name: value
                for name in ("layer_norm_eps", "activation", "drop_path")
                if (value := getattr(hints, name)) is not None
            }
        )
        with unfilled():
            network = VisionTransformer(config)
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from error
    _check_shapes(state, network.state_dict(), converted.missing, source)
    return network


def build(converted: Converted, config: ViTConfig, *, dtype: torch.dtype = torch.float32) -> VisionTransformer:
    """The network with these tensors in it, in evaluation mode; floating point is cast to `dtype`.

    Tensors that `converted.missing` names keep a fresh initialisation.
    """
    with unfilled():
        model = VisionTransformer(config)
    return fill(model, converted, dtype=dtype)


def fill(model: VisionTransformer, converted: Converted, *, dtype: torch.dtype = torch.float32) -> VisionTransformer:
    """`build` of a network that was made without values, as `infer_network` makes it: nothing is initialised in vain."""
    state = {name: tensor.to(dtype) for name, tensor in converted.state.items()}
    if converted.missing:
        model = VisionTransformer(model.config).to(dtype)
        model.load_state_dict(state, strict=False)
    else:
        model.load_state_dict(state, strict=True, assign=True)
        model.requires_grad_(True)
    return model.eval()


def _shape(state: dict[str, Tensor], name: str, ndim: int, source: str) -> tuple[int, ...]:
    if name not in state:
        raise WeightsError(f"{source}: {name} is missing, and the architecture can't be told without it.")
    shape = tuple(state[name].shape)
    if len(shape) != ndim:
        raise WeightsError(f"{source}: {name} has shape {shape}; it must have {ndim} axes.")
    return shape


def _image_size(positions: int, patch: int, hint: tuple[int, int] | None, source: str) -> tuple[int, int]:
    if hint is not None:
        rows, columns = hint[0] // patch, hint[1] // patch
        if rows * columns != positions:
            raise WeightsError(
                f"{source}: the position table has {positions} patches, but an image size of {hint[0]} x {hint[1]} with patches of "
                f"{patch} gives {rows} x {columns} = {rows * columns}; the configuration beside it is wrong."
            )
        return hint
    side = math.isqrt(positions)
    if side * side != positions:
        raise WeightsError(
            f"{source}: the position table has {positions} patches, which is no square; give image_size=(height, width)."
        )
    return side * patch, side * patch


def _check_shapes(
    state: dict[str, Tensor], expected: dict[str, Tensor], allowed_missing: tuple[str, ...], source: str
) -> None:
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"{source}: tensors disagree about the network's size: {'; '.join(wrong[:3])}{more}.")
    odd = sorted(state.keys() ^ (expected.keys() - set(allowed_missing)))
    if odd:
        raise WeightsError(
            f"{source}: {odd[0]} is {'too much' if odd[0] in state else 'missing'} for a network of this kind."
        )
