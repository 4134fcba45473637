"""Pairs of models with the same random weights: transformers' and ours."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import dinokit.compat.hf as ours
from tests.tolerances import max_error

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 70, "patch_size": 14}
PLAIN, REGISTERS = "Dinov2", "Dinov2WithRegisters"

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (PLAIN, {}),
    "plain, no qkv bias": (PLAIN, {"qkv_bias": False}),
    "plain, swiglu": (PLAIN, {"use_swiglu_ffn": True}),
    "plain, relu, one channel": (PLAIN, {"hidden_act": "relu", "num_channels": 1}),
    "plain, gelu_new": (PLAIN, {"hidden_act": "gelu_new", "mlp_ratio": 2}),
    "registers": (REGISTERS, {}),
    "registers, no qkv bias": (REGISTERS, {"qkv_bias": False, "num_register_tokens": 1}),
    "registers, swiglu": (REGISTERS, {"use_swiglu_ffn": True}),
    "registers kind, none of them": (REGISTERS, {"num_register_tokens": 0}),
}
SIZES = {
    "native": (70, 70),
    "larger": (98, 98),
    "smaller": (42, 42),
    "wide": (56, 112),
    "tall": (84, 70),
    "native count, not square": (35, 140),
    "trailing pixels": (75, 93),
}


def pair(network: str, head: str = "Model", seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """(theirs, ours) in evaluation mode, all weights random, none zero; theirs with eager attention, so that it shows it."""
    kind, values = NETWORKS[network]
    values = TINY | values | changes
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**values)
    theirs = getattr(transformers, kind + head)._from_config(config, attn_implementation="eager").eval()
    randomize(theirs)
    mine = getattr(ours, kind + head)(getattr(ours, f"{kind}Config")(**values)).eval()
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.ndim == 1 or "embeddings" in name else 0.15
        parameter.add_(torch.randn_like(parameter) * scale)


def images(model: Any, size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, model.config.num_channels, *size, generator=torch.Generator().manual_seed(7))


def worst(a: Any, b: Any) -> float:
    """Largest difference between two outputs, field by field; they must have the same fields."""
    if isinstance(a, Tensor):
        return max_error(a, b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        return max(worst(a[key], b[key]) for key in a)
    assert len(a) == len(b)
    return max(worst(x, y) for x, y in zip(a, b, strict=True))


def gradient_error(theirs: nn.Module, mine: Any) -> float:
    """Largest difference between the gradients of all parameters, by name; a missing gradient counts as zeros."""
    holder = type(mine)(mine.config)
    given = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in theirs.named_parameters()}
    holder.load_state_dict(given)
    native = dict(holder.named_parameters())
    return max(
        max_error(native[name], torch.zeros_like(p) if p.grad is None else p.grad)
        for name, p in mine.named_parameters()
    )
