"""Which parameter learns how fast and is decayed; clipping; AdamW.

Promise: every trainable parameter is in exactly one group, by a rule that reads names only.
Source: dinov2/utils/param_groups.py and dinov2/configs; layer-wise decay: Clark et al. 2020, Bao et al. 2022; Muon: Jordan et al. 2024.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinokit.train.schedules import Rates

ADAM_BETAS = 0.9, 0.999
CLIP_NORM = 3.0


class Multipliers(NamedTuple):
    """What the rates are multiplied with; `is_last_layer` says which learning rate it is."""

    lr: float
    weight_decay: float
    is_last_layer: bool


@dataclass(frozen=True)
class GroupRule:
    """From a parameter's name to its multipliers.

    The learning rate falls by `layerwise_decay` with each block away from the output: block i of n has decay^(n - i), whatever
    feeds the first block decay^(n + 1), everything behind the last block and in heads 1; the patch embedding times
    `patch_embed` besides. Weight decay spares biases, norms and layer scales only: tokens, positions and the prototypes'
    norms are decayed, as in the official code.
    """

    layerwise_decay: float = 0.9
    patch_embed: float = 0.2
    inputs: tuple[str, ...] = ("cls_token", "pos_embed", "register_tokens", "mask_token", "patch_embed")
    undecayed: str = r"\.bias$|norm|gamma"
    last_layer: str = "last_layer"

    def __call__(self, name: str, depth: int | None = None) -> Multipliers:
        """Multipliers of the parameter `name` of a network of `depth` blocks; None: of a head."""
        lr = 1.0
        if depth is not None:
            lr = self.layerwise_decay ** (depth + 1 - self._layer(name, depth))
            if "patch_embed" in name:
                lr *= self.patch_embed
        return Multipliers(lr, 0.0 if re.search(self.undecayed, name) else 1.0, self.last_layer in name)

    def _layer(self, name: str, depth: int) -> int:
        if any(part in name for part in self.inputs):
            return 0
        block = re.search(r"(?:^|\.)blocks\.(?:\d+\.)?(\d+)\.", name)  # Meta's chunks of blocks put a number in between
        return int(block[1]) + 1 if block else depth + 1


def multipliers(module: nn.Module, rule: GroupRule) -> dict[str, Multipliers]:
    """The table of a module's trainable parameters; a module without `blocks` is a head."""
    blocks = getattr(module, "blocks", None)
    depth = None if blocks is None else len(blocks)
    return {name: rule(name, depth) for name, parameter in module.named_parameters() if parameter.requires_grad}


def parameter_groups(network: nn.Module, rule: GroupRule) -> list[dict[str, Any]]:
    """Optimiser groups of a network whose children are backbone and heads; equal multipliers share a group.

    `params` are (name, parameter), so that an optimiser's state says what belongs to what.
    """
    groups: dict[Multipliers, dict[str, Any]] = {}
    for child_name, child in network.named_children():
        parameters = dict(child.named_parameters())
        for name, found in multipliers(child, rule).items():
            group = groups.setdefault(
                found,
                {
                    "params": [],
                    "lr_multiplier": found.lr,
                    "wd_multiplier": found.weight_decay,
                    "is_last_layer": found.is_last_layer,
                },
            )
            group["params"].append((f"{child_name}.{name}", parameters[name]))
    return list(groups.values())


def adamw(
    groups: list[dict[str, Any]], betas: tuple[float, float] = ADAM_BETAS, eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW over `groups`, fused where PyTorch can; its rates are 0 until `set_rates`."""
    devices = {parameter.device.type for group in groups for _, parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, weight_decay=0.0, fused=devices <= {"cpu", "cuda"})


def set_rates(optimizers: Iterable[torch.optim.Optimizer], rates: Rates) -> None:
    """Give every group its learning rate and weight decay for the coming step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            lr = rates.last_layer_lr if group["is_last_layer"] else rates.lr
            group["lr"] = lr * group["lr_multiplier"]
            group["weight_decay"] = rates.weight_decay * group["wd_multiplier"]


def clip_gradients(network: nn.Module, max_norm: float = CLIP_NORM) -> dict[str, Tensor]:
    """Scale the gradient of each child (backbone, heads) by itself to a norm of at most `max_norm`; the norms before that.

    The factor is min(1, max_norm / (norm + 1e-6)). Infinity for `max_norm` only measures.
    """
    return {
        name: nn.utils.clip_grad_norm_(child.parameters(), max_norm, foreach=True)
        for name, child in network.named_children()
    }


def muon_and_adamw(
    groups: list[dict[str, Any]], betas: tuple[float, float] = ADAM_BETAS, eps: float = 1e-8
) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Experimental: Muon for the matrices in the blocks, AdamW for all else; groups and rates as for `adamw`.

    Muon's steps are scaled to the size of AdamW's, so that the same learning rates serve. No published DINOv2 network was
    trained so, and nothing here shows that it is better; fused q, k, v count as one matrix.
    """
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups:
        for chosen, kind in ((matrices, True), (others, False)):
            params = [(name, p) for name, p in group["params"] if _is_matrix_of_block(name, p) is kind]
            if params:
                chosen.append({**group, "params": params})
    muon = torch.optim.Muon(matrices, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return muon, adamw(others, betas, eps)


def _is_matrix_of_block(name: str, parameter: Tensor) -> bool:
    return ".blocks." in name and parameter.ndim == 2
