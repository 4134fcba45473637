"""State dicts of `BirderNet` in Birder's names: written as Birder 0.4.0 and newer do, read as any generation did.

Promise: `state_dict()` of a net loads into Birder's and the other way round, also where the net is a part of a larger module.
Tensors are the parameters themselves, as PyTorch's own state dicts hold them, not copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dinokit.model import VisionTransformer
from dinokit.weights.convert import from_native
from dinokit.weights.layouts import BIRDER, BIRDER_LEGACY

STEM = "vit."  # where `BirderNet` keeps the native network

State = dict[str, Tensor]


def register(net: nn.Module) -> None:
    """Make `net` speak Birder's names."""
    net.register_state_dict_post_hook(_write)
    net.register_load_state_dict_pre_hook(_read)
    net.register_load_state_dict_post_hook(_rename_missing)


def _write(_: nn.Module, state: State, prefix: str, *__: object) -> None:
    own = {name[len(prefix) :]: state.pop(name) for name in list(state) if name.startswith(prefix)}
    native = {name.removeprefix(STEM): tensor for name, tensor in own.items() if name.startswith(STEM)}
    foreign = from_native(native, BIRDER)
    row = native["pos_embed"][:, :1]
    if row.is_meta or not row.any():  # nothing to fold: the parameter itself, so that writing into the dict reaches it
        foreign["class_token"] = native["cls_token"]
    foreign |= {name: tensor for name, tensor in own.items() if not name.startswith(STEM)}
    state.update((prefix + name, tensor) for name, tensor in foreign.items())


def _read(net: nn.Module, state: State, prefix: str, *_: object) -> None:
    """Birder's names to native ones; what is no Birder name stays, for PyTorch to report."""
    natives = _natives(_vit(net).config.depth)
    own = {name[len(prefix) :]: state.pop(name) for name in list(state) if name.startswith(prefix)}
    token = own.get("class_token")
    for name, tensor in own.items():
        if name == "pos_embedding" and tensor.ndim == 3:
            tensor = torch.cat([tensor.new_zeros(1, 1, tensor.shape[2]), tensor], dim=1)
        state[f"{prefix}{STEM}{natives[name]}" if name in natives else prefix + name] = tensor
    if token is not None and token.ndim == 3:  # what Birder has no place for is not missing
        state[f"{prefix}{STEM}mask_token"] = token.new_zeros(1, token.shape[2])
        if "reg_tokens" not in own and not _vit(net).config.num_register_tokens:
            state[f"{prefix}{STEM}register_tokens"] = token.new_zeros(1, 0, token.shape[2])


def _rename_missing(net: nn.Module, incompatible: Any) -> None:
    """What is missing, in Birder's names; without what Birder has no place for."""
    vit = _vit(net)
    foreign = {native: name for name, native in _natives(vit.config.depth, legacy=False).items()}
    if not vit.config.num_register_tokens:
        del foreign["register_tokens"]
    keys = [key.rpartition(STEM) for key in incompatible.missing_keys]
    incompatible.missing_keys[:] = [
        before + (foreign[native] if stem else native) for before, stem, native in keys if not stem or native in foreign
    ]


def _vit(net: nn.Module) -> VisionTransformer:
    vit = net.get_submodule("vit")
    assert isinstance(vit, VisionTransformer)
    return vit


def _natives(depth: int, *, legacy: bool = True) -> dict[str, str]:
    """Birder's name -> native name; the tables of both generations join no tensors, so this is one to one."""
    layouts = (BIRDER, BIRDER_LEGACY) if legacy else (BIRDER,)
    return {names[0]: native for layout in layouts for native, names in layout.rows(depth, "mlp")}
