"""State dicts under the hub's names: split and fuse, in PyTorch's public hooks, what the native network holds fused.

Promise: a model with these hooks gives and takes the names of files on the hub wherever it is nested (in a module of the
user's, in DistributedDataParallel, ...); it also takes transformers 5's names in memory; what is missing, left over or
misshaped is reported under the hub's names. `named_parameters()` stays native.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dinokit.model import VisionTransformer
from dinokit.weights.layouts import HF, HF5, Layout

NETWORK = "vit"
"""Name of the attribute that holds the native network in the modules with these hooks."""

Rows = dict[str, tuple[str, ...]]


def table(vit: VisionTransformer, layout: Layout = HF) -> Rows:
    """Native name to foreign names of every tensor that `vit` has."""
    present = vit.state_dict().keys()
    return {native: foreign for native, foreign in layout.rows(vit.config.depth, vit.config.ffn) if native in present}


def install(module: nn.Module) -> None:
    """Let `module`, whose `vit` is the native network, speak the hub's names."""
    module.register_state_dict_post_hook(_to_hub)
    module.register_load_state_dict_pre_hook(_from_hub)


def _to_hub(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: object) -> None:
    """Rename in place; the parts of a split tensor are views of it."""
    vit: VisionTransformer = getattr(module, NETWORK)
    for native, foreign in table(vit).items():
        tensor = state_dict.pop(f"{prefix}{NETWORK}.{native}", None)
        if tensor is None or (native == "register_tokens" and not module.has_registers):
            continue
        state_dict.update(zip((prefix + name for name in foreign), _split(tensor, len(foreign)), strict=True))


def _from_hub(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _: object,
    strict: bool,  # noqa: ARG001 - PyTorch calls with these
    missing_keys: list[str],
    unexpected_keys: list[str],  # noqa: ARG001
    error_msgs: list[str],
) -> None:
    """Put a whole native state into `state_dict`.

    A part that is missing or misshaped is reported here and its own present value put in, so that PyTorch, which then
    compares native names, has nothing to report a second time.
    """
    vit: VisionTransformer = getattr(module, NETWORK)
    own = vit.state_dict()
    newer = table(vit, HF5)
    for native, foreign in table(vit).items():
        key = f"{prefix}{NETWORK}.{native}"
        if key in state_dict:
            continue
        names = tuple(prefix + name for name in foreign)
        newer_names = tuple(prefix + name for name in newer[native])
        if not any(name in state_dict for name in names) and any(name in state_dict for name in newer_names):
            names = newer_names
        parts = list(_split(own[native], len(names)))
        for index, name in enumerate(names):
            given = state_dict.pop(name, None)
            if given is None:
                if parts[index].numel():
                    missing_keys.append(name)
            elif given.shape != parts[index].shape:
                error_msgs.append(
                    f"size mismatch for {name}: the checkpoint has {tuple(given.shape)}, the model {tuple(parts[index].shape)}."
                )
            else:
                parts[index] = given
        state_dict[key] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=0)


def _split(tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    return tensor.chunk(parts, dim=0) if parts > 1 else (tensor,)
