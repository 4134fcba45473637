"""Take off what training code wraps around parameter names, so that only a layout's own names are left.

Wrapper segments are removed by table, chunk numbers by rule, heads of the self-supervised objective are set aside.
Source: facebookresearch/dinov2 (FSDP checkpoints, `block_chunks`), torch.compile, DistributedDataParallel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dinokit.errors import WeightsError

# Modules that wrap another one and put their own name into the path.
WRAPPER_SEGMENTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Heads of the training objective (Oquab et al. 2023, section 4): no part of the features.
TRAINING_HEADS = ("dino_head.", "ibot_head.")
_CHUNKED = re.compile(r"^((?:.*\.)?blocks)\.(\d+)\.(\d+)\.(.*)$")


@dataclass(frozen=True)
class Peeled:
    """Tensors under bare names, and the names that were set aside."""

    tensors: dict[str, Tensor]
    dropped: tuple[str, ...]


def peel(tensors: Mapping[str, Tensor]) -> Peeled:
    """Bare names.

    Raises:
        WeightsError: two names become one, as when a file holds a student and a teacher side by side.
    """
    chunked = _is_chunked(tensors)
    bare: dict[str, Tensor] = {}
    dropped = []
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPER_SEGMENTS)
        if short.startswith(TRAINING_HEADS):
            dropped.append(name)
            continue
        if chunked:
            short = _CHUNKED.sub(r"\1.\3.\4", short)
        if short in bare:
            raise WeightsError(
                f"two tensors of the checkpoint are both {short!r} once wrappers are off; keep one of the models."
            )
        bare[short] = tensor
    return Peeled(bare, tuple(dropped))


def _is_chunked(tensors: Mapping[str, Tensor]) -> bool:
    """Whether block names carry a chunk number before the block's own (which counts through all chunks)."""
    blocks = [name for name in tensors if re.search(r"(?:^|\.)blocks\.\d", name)]
    return bool(blocks) and all(
        _CHUNKED.match(".".join(part for part in name.split(".") if part not in WRAPPER_SEGMENTS)) for name in blocks
    )
