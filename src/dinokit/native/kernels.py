"""The kernels as functions of tensors: float32, on the CPU, without gradients."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float32
from torch import Tensor

from dinokit.native.library import library

PANEL = 16  # outputs that a register tile computes at once; channels of a head and tokens come in groups of so many
QUERIES = 48  # rows of scores that a thread keeps
# Of attention in integers: what its buffers hold, and up to where rounding leaves its sums below 2^31.
MOST_WIDTH, MOST_TOKENS = 256, 65536


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Where a tensor's values begin."""
    return ctypes.c_void_p(tensor.data_ptr())


def size(value: int) -> ctypes.c_int64:
    """A length for C."""
    return ctypes.c_int64(value)


def threads() -> ctypes.c_int:
    """As many as PyTorch would take."""
    return ctypes.c_int(torch.get_num_threads())


def checked(x: Tensor) -> Tensor:
    """`x` with its values side by side.

    Raises:
        ValueError: it is not float32 on the CPU, or gradients are asked of it.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ValueError(f"the input is {x.dtype} on {x.device}; compiled kernels take float32 on the CPU.")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("compiled kernels give no gradients; use the network that the fast form was made from.")
    return x.contiguous()


def norm(
    x: Float32[Tensor, "... d"], weight: Float32[Tensor, " d"], bias: Float32[Tensor, " d"], eps: float
) -> Float32[Tensor, "... d"]:
    """Layer norm over the last axis."""
    x = checked(x)
    out = torch.empty_like(x)
    width = x.shape[-1]
    library().dinokit_norm_f32(
        pointer(x), pointer(weight), pointer(bias), pointer(out), size(x.numel() // width), size(width),
        ctypes.c_float(eps), threads(),
    )  # fmt: skip
    return out


def attention(qkv: Float32[Tensor, "b t 3*d"], heads: int, scale: float) -> Float32[Tensor, "b t d"]:
    """softmax(q k' * scale) v for each head, heads side by side; the width of a head must be a multiple of 16.

    Raises:
        ValueError: heads of another width, or as `checked`.
    """
    qkv, width, padded = _heads(qkv, heads)
    batch, tokens = qkv.shape[:2]
    out = qkv.new_empty(batch, tokens, heads * width)
    packed = qkv.new_empty(batch * heads * 2 * padded * width)
    scores = qkv.new_empty(torch.get_num_threads() * QUERIES * padded)
    library().dinokit_attention_f32(
        pointer(qkv), pointer(out), pointer(packed), pointer(scores), size(batch), size(tokens), size(heads),
        size(width), ctypes.c_float(scale), threads(),
    )  # fmt: skip
    return out


def attention_int16(qkv: Float32[Tensor, "b t 3*d"], heads: int, scale: float) -> Float32[Tensor, "b t d"]:
    """`attention` with integers of 12 bits, 15 for the softmax, in both products; float32 for more tokens or wider heads than fit.

    Raises:
        ValueError: as `attention`.
    """
    qkv, width, padded = _heads(qkv, heads)
    batch, tokens = qkv.shape[:2]
    if width > MOST_WIDTH or tokens > MOST_TOKENS:
        return attention(qkv, heads, scale)
    out = qkv.new_empty(batch, tokens, heads * width)
    packed = torch.empty(batch * heads * 2 * padded * width, dtype=torch.int16)
    scales = qkv.new_empty(batch * heads * (padded + width))
    room = torch.get_num_threads() * QUERIES * max(padded, width)
    scores, integers = qkv.new_empty(room), torch.empty(room, dtype=torch.int16)
    library().dinokit_attention_i16(
        pointer(qkv), pointer(out), pointer(packed), pointer(scales), pointer(scores), pointer(integers), size(batch),
        size(tokens), size(heads), size(width), ctypes.c_float(scale), threads(),
    )  # fmt: skip
    return out


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, int, int]:
    """The input checked, the width of a head, and the number of tokens that panels have."""
    qkv = checked(qkv)
    width = qkv.shape[2] // 3 // heads
    if width % PANEL or qkv.shape[2] != 3 * heads * width:
        raise ValueError(f"{heads} heads of {qkv.shape[2]} / 3 channels; heads must have a multiple of {PANEL}.")
    return qkv, width, -(-qkv.shape[1] // PANEL) * PANEL
