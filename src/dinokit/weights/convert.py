"""Foreign tensors to native ones and back, through the tables of `layouts`.

Promise: a layout is accepted only if it covers the names exactly; otherwise the error lists what is missing and what is left
over against the nearest layout. Conversion copies values, never changes them, but for the folding of positions that timm and
Birder do (class token + its position), which can't be undone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dinokit.config import MAX_DEPTH, Ffn
from dinokit.errors import WeightsError
from dinokit.weights.layouts import LAYOUTS, Layout, generic
from dinokit.weights.peel import peel

SHOWN_NAMES = 10


@dataclass(frozen=True)
class Converted:
    """Native tensors and how they came about.

    `state` is complete: `register_tokens` is there (maybe empty), as is `mask_token`; `filled` names those that the file had no
    place for. `head` holds the weight and bias of a linear classifier, where there was one. `dropped` are foreign names of
    training heads. `missing` (native) and `unexpected` (foreign) are empty unless strictness was switched off.
    """

    state: dict[str, Tensor] = field(repr=False)
    layout: Layout
    ffn: Ffn
    head: dict[str, Tensor] | None = field(default=None, repr=False)
    filled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def num_registers(self) -> int:
        """Register tokens in the file."""
        return self.state["register_tokens"].shape[1]

    @property
    def depth(self) -> int:
        """Blocks in the file."""
        return 1 + max(int(name.split(".")[1]) for name in self.state if name.startswith("blocks."))


@dataclass(frozen=True)
class _Match:
    """How well one layout, with one kind of feed-forward network, covers the names."""

    layout: Layout
    ffn: Ffn
    rows: dict[str, tuple[str, ...]]
    head: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def distance(self) -> int:
        return len(self.missing) + len(self.extra)


def to_native(tensors: Mapping[str, Tensor], *, source: str = "the checkpoint", strict: bool = True) -> Converted:
    """Native tensors from any known layout, wrapped or not.

    `source` names the file in errors. With `strict=False` missing and left-over tensors are reported instead of refused.

    Raises:
        WeightsError: no layout covers the names exactly; a tensor has a wrong shape or type, or is not finite.
    """
    peeled = peel(tensors)
    match = detect(peeled.tensors)
    if match is None:
        raise WeightsError(_not_a_vit(peeled.tensors, source))
    if match.distance and strict:
        raise WeightsError(_does_not_cover(match, source))
    for name, tensor in tensors.items():
        _check_values(name, tensor, source)
    bare = _without_prefix(peeled.tensors, match.layout)
    state = {
        native: _join(bare, foreign, source)
        for native, foreign in match.rows.items()
        if all(name in bare for name in foreign)
    }
    filled = _complete(state, match.layout, source)
    head = {name.rsplit(".", 1)[1]: bare[name] for name in match.head} or None
    return Converted(
        state, match.layout, match.ffn, head, filled, peeled.dropped, missing=match.missing, unexpected=match.extra
    )


def from_native(
    state: Mapping[str, Tensor], layout: Layout | str, head: Mapping[str, Tensor] | None = None, *, prefix: str = ""
) -> dict[str, Tensor]:
    """Tensors under the names of `layout`; `prefix` goes before all but the head's.

    An empty register table is left out. What the layout lacks (timm's and Birder's mask token) is left out too.

    Raises:
        WeightsError: the layout can't hold this network.
    """
    layout = LAYOUTS[layout] if isinstance(layout, str) else layout
    ffn: Ffn = "swiglu" if "blocks.0.mlp.w12.weight" in state else "mlp"
    if ffn == "swiglu" and layout.swiglu is None:
        raise WeightsError(f"{layout.title} has no SwiGLU network of this kind; write another layout.")
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    state = dict(state)
    if layout.folds_position(state["register_tokens"].shape[1]):
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    if not state["register_tokens"].shape[1]:
        del state["register_tokens"]
    foreign_state: dict[str, Tensor] = {}
    for native, foreign in layout.rows(depth, ffn):
        if native in state:
            parts = state[native].chunk(len(foreign), dim=0) if len(foreign) > 1 else (state[native],)
            foreign_state.update((prefix + name, part) for name, part in zip(foreign, parts, strict=True))
    for leaf, tensor in (head or {}).items():
        foreign_state[f"{layout.head}.{leaf}"] = tensor
    return foreign_state


def detect(tensors: Mapping[str, Tensor]) -> _Match | None:
    """The layout that covers bare names best; None where not even a class token is found under any layout."""
    matches = [
        match
        for layout in LAYOUTS.values()
        for ffn in ("mlp", "swiglu")
        if (match := _try(tensors, layout, ffn)) is not None
    ]
    return min(matches, key=lambda match: match.distance, default=None)


def _try(tensors: Mapping[str, Tensor], layout: Layout, ffn: Ffn) -> _Match | None:
    bare = _without_prefix(tensors, layout)
    foreign_class_token = next(iter(dict(layout.rows(0, "mlp"))["cls_token"]))
    if foreign_class_token not in bare or (ffn == "swiglu" and layout.swiglu is None):
        return None
    rows = dict(layout.rows(_depth(bare, layout), ffn))
    if layout.name == "timm" and not _timm_ffn_is(ffn, bare):
        return None
    head = tuple(f"{layout.head}.{leaf}" for leaf in ("weight", "bias") if f"{layout.head}.{leaf}" in bare)
    known = {name for foreign in rows.values() for name in foreign} | set(head)
    # An optional tensor may be absent from all blocks, not from some.
    present = {generic(native) for native, foreign in rows.items() if any(name in bare for name in foreign)}
    missing = tuple(
        native
        for native, foreign in rows.items()
        if any(name not in bare for name in foreign)
        and not (layout.is_optional(native) and generic(native) not in present)
    )
    return _Match(layout, ffn, rows, head, missing, tuple(sorted(bare.keys() - known)))


def _timm_ffn_is(ffn: Ffn, bare: Mapping[str, Tensor]) -> bool:
    """Both kinds have the same names in timm; SwiGLU's first layer is twice as wide as its second reads."""
    fc1, fc2 = bare.get("blocks.0.mlp.fc1.weight"), bare.get("blocks.0.mlp.fc2.weight")
    if fc1 is None or fc2 is None or fc1.ndim != 2 or fc2.ndim != 2:
        return ffn == "mlp"
    return (fc1.shape[0] == 2 * fc2.shape[1]) == (ffn == "swiglu")


def _depth(bare: Mapping[str, Tensor], layout: Layout) -> int:
    """One more than the largest block number among the names; bounded, so that a wild name builds no giant table."""
    prefix = next(iter(layout.block.values()))[0].split("{i}")[0]
    numbers = (name[len(prefix) :].split(".")[0] for name in bare if name.startswith(prefix))
    return min(max((int(number) + 1 for number in numbers if number.isdecimal()), default=0), MAX_DEPTH)


def _without_prefix(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    for prefix in layout.prefixes:
        if any(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _join(bare: Mapping[str, Tensor], names: tuple[str, ...], source: str) -> Tensor:
    parts = [bare[name] for name in names]
    if len(parts) == 1:
        return parts[0]
    if len({part.shape for part in parts}) > 1 or not parts[0].ndim:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in zip(names, parts, strict=True))
        raise WeightsError(f"{source}: these must have one shape to be joined: {shapes}.")
    return torch.cat(parts, dim=0)


def _complete(state: dict[str, Tensor], layout: Layout, source: str) -> tuple[str, ...]:
    """Add what the file has no place for: no registers, a zero mask token, a zero class position. Names what was added."""
    token = state.get("cls_token")
    if token is None or token.ndim != 3 or token.shape[:2] != (1, 1):
        shape = None if token is None else tuple(token.shape)
        raise WeightsError(f"{source}: the class token has shape {shape}; expected (1, 1, width).")
    width = token.shape[2]
    filled = []
    if "register_tokens" not in state:
        state["register_tokens"] = token.new_zeros(1, 0, width)
    if state["register_tokens"].ndim != 3:
        raise WeightsError(
            f"{source}: the register tokens have shape {tuple(state['register_tokens'].shape)}; expected (1, registers, width)."
        )
    if "mask_token" not in state:
        state["mask_token"] = token.new_zeros(1, width)
        filled.append("mask_token")
    if layout.folds_position(state["register_tokens"].shape[1]) and "pos_embed" in state:
        if state["pos_embed"].ndim != 3:
            raise WeightsError(
                f"{source}: the position table has shape {tuple(state['pos_embed'].shape)}; expected 3 axes."
            )
        state["pos_embed"] = torch.cat([token.new_zeros(1, 1, state["pos_embed"].shape[2]), state["pos_embed"]], dim=1)
    return tuple(filled)


def _check_values(name: str, tensor: Tensor, source: str) -> None:
    if not tensor.is_floating_point():
        raise WeightsError(
            f"{source}: {name} holds {tensor.dtype}; weights are floating point (dequantise them first)."
        )
    # NaN and infinity never leave a sum again, so a finite sum proves all values finite, at the speed of memory. Finite values may
    # overflow it, so the opposite is looked at one by one.
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    total = tensor.sum(dtype=wide).item()
    if not math.isfinite(total) and (bad := int((~torch.isfinite(tensor.to(wide))).sum())):
        raise WeightsError(
            f"{source}: {name} has {bad:,} of {tensor.numel():,} values that are NaN or infinite; the file is damaged or the "
            f"training that wrote it diverged."
        )


def _shown(names: tuple[str, ...] | list[str]) -> str:
    rest = f", and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + rest


def _does_not_cover(match: _Match, source: str) -> str:
    foreign = [name for native in match.missing for name in match.rows[native]]
    text = f"{source} is not complete in any known layout. Nearest: {match.layout.name} ({match.layout.title})."
    if foreign:
        text += f" Missing {len(foreign)}: {_shown(foreign)}."
    if match.extra:
        text += f" Unexpected {len(match.extra)}: {_shown(match.extra)}."
    return text


def _not_a_vit(tensors: Mapping[str, Tensor], source: str) -> str:
    if set(tensors) == {"weight", "bias"}:
        return f"{source} is a linear head alone (weight, bias); load it with `dinokit.load(backbone, head=PATH)`."
    return (
        f"{source} is no DINOv2 backbone: it has no class token under the names of {', '.join(LAYOUTS)}. "
        f"It holds {len(tensors)} tensors: {_shown(sorted(tensors))}."
    )
