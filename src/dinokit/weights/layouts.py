"""How each implementation names our tensors: one table a layout, native name -> foreign name.

A tuple of foreign names means "joined on dim 0". `{i}` stands for the block. The inverse is derived; nothing is matched by
substring. A new layout is one table here and one row in the round-trip test.
Source: the keys of Meta's, transformers', timm's and Birder's files, see docs/layouts.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dinokit.config import OFFSET_PLAIN, SIZE_ANTIALIAS, SIZE_PLAIN, Ffn, PositionRule

Foreign = str | tuple[str, ...]
Rows = dict[str, Foreign]

# Native tensors that a network may lack: without registers the token table is empty, without qkv_bias there is no bias.
OPTIONAL = frozenset({"register_tokens", "blocks.{i}.attn.qkv.bias"})


@dataclass(frozen=True)
class Layout:
    """One implementation's names.

    `folds` says where the class token's position is added into the class token and dropped from the table.
    `lacks` holds native tensors that the layout has no place for (zeros when read), `may_lack` those that a file may omit.
    `plain` and `registers` are the position rules of the implementation, without and with registers.
    """

    name: str
    title: str
    stem: Rows
    block: Rows
    mlp: Rows
    swiglu: Rows | None
    head: str
    prefixes: tuple[str, ...] = ()
    folds: Literal["never", "with registers", "always"] = "never"
    lacks: frozenset[str] = frozenset()
    may_lack: frozenset[str] = frozenset()
    plain: PositionRule = SIZE_ANTIALIAS
    registers: PositionRule = SIZE_ANTIALIAS

    def rows(self, depth: int, ffn: Ffn) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(Native name, foreign names to join) of every tensor of a network, in order."""
        for native, foreign in self.stem.items():
            yield native, _as_tuple(foreign)
        ffn_rows = self.mlp if ffn == "mlp" else (self.swiglu or {})
        for i in range(depth):
            for native, foreign in {**self.block, **ffn_rows}.items():
                yield native.format(i=i), tuple(name.format(i=i) for name in _as_tuple(foreign))

    def is_optional(self, native: str) -> bool:
        """Whether a file of this layout may be without the tensor."""
        return generic(native) in OPTIONAL or native in self.may_lack

    def folds_position(self, num_registers: int) -> bool:
        """Whether the class token's position is part of the class token."""
        return self.folds == "always" or (self.folds == "with registers" and num_registers > 0)

    def position_rule(self, num_registers: int) -> PositionRule:
        """How this implementation resamples positions."""
        return self.registers if num_registers else self.plain


def generic(native: str) -> str:
    """A native name with its block number as `{i}`."""
    parts = native.split(".")
    if parts[0] == "blocks":
        parts[1] = "{i}"
    return ".".join(parts)


def _as_tuple(foreign: Foreign) -> tuple[str, ...]:
    return (foreign,) if isinstance(foreign, str) else foreign


def _linear(modules: Mapping[str, Foreign]) -> Rows:
    """Rows for the weight and the bias of each module."""
    return {
        f"{native}.{leaf}": tuple(f"{name}.{leaf}" for name in _as_tuple(foreign))
        for native, foreign in modules.items()
        for leaf in ("weight", "bias")
    }


def _block(prefix: str, modules: Mapping[str, Foreign], parameters: Mapping[str, str] | None = None) -> Rows:
    """Rows of one block: `modules` have a weight and a bias, `parameters` stand alone; `prefix` is the foreign one."""
    rows = {**_linear(modules), **(parameters or {})}
    return {
        f"blocks.{{i}}.{native}": tuple(f"{prefix}.{{i}}.{name}" for name in _as_tuple(foreign))
        for native, foreign in rows.items()
    }


_SAME_BLOCK = _block(
    "blocks",
    {"norm1": "norm1", "attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "norm2": "norm2"},
    {"ls1.gamma": "ls1.gamma", "ls2.gamma": "ls2.gamma"},
)
_SAME_MLP = _block("blocks", {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"})

OFFICIAL = Layout(
    name="official",
    title="Meta's facebookresearch/dinov2 (also dinokit's own names)",
    stem={
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "register_tokens": "register_tokens",
        "mask_token": "mask_token",
        **_linear({"patch_embed.proj": "patch_embed.proj", "norm": "norm"}),
    },
    block=_SAME_BLOCK,
    mlp=_SAME_MLP,
    swiglu=_block("blocks", {"mlp.w12": "mlp.w12", "mlp.w3": "mlp.w3"}),
    head="linear_head",
    prefixes=("backbone.",),
    plain=OFFSET_PLAIN,
)

_HF_STEM: Rows = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    **_linear({"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}),
}
_HF_SCALES = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
_HF_MLP = _block("encoder.layer", {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"})
_HF_PREFIXES = ("dinov2.", "dinov2_with_registers.")

HF = Layout(
    name="hf",
    title="transformers, as on the hub and on disk",
    stem=_HF_STEM,
    block=_block(
        "encoder.layer",
        {
            "norm1": "norm1",
            "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
            "attn.proj": "attention.output.dense",
            "norm2": "norm2",
        },
        _HF_SCALES,
    ),
    mlp=_HF_MLP,
    swiglu=_block("encoder.layer", {"mlp.w12": "mlp.weights_in", "mlp.w3": "mlp.weights_out"}),
    head="classifier",
    prefixes=_HF_PREFIXES,
    may_lack=frozenset({"mask_token"}),
    plain=SIZE_PLAIN,
)

HF5 = Layout(
    name="hf5",
    title="transformers 5, as in memory",
    stem=_HF_STEM,
    block=_block(
        "encoder.layer",
        {
            "norm1": "norm1",
            "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "attn.proj": "attention.o_proj",
            "norm2": "norm2",
        },
        _HF_SCALES,
    ),
    mlp=_HF_MLP,
    swiglu=_block("encoder.layer", {"mlp.w12": ("mlp.gate_proj", "mlp.up_proj"), "mlp.w3": "mlp.down_proj"}),
    head="classifier",
    prefixes=_HF_PREFIXES,
    may_lack=frozenset({"mask_token"}),
    plain=SIZE_PLAIN,
)

TIMM = Layout(
    name="timm",
    title="timm",
    stem={
        "cls_token": "cls_token",
        "pos_embed": "pos_embed",
        "register_tokens": "reg_token",
        **_linear({"patch_embed.proj": "patch_embed.proj", "norm": "norm"}),
    },
    block=_SAME_BLOCK,
    mlp=_SAME_MLP,
    swiglu=_block("blocks", {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}),
    head="head",
    folds="with registers",
    lacks=frozenset({"mask_token"}),
)

_BIRDER_STEM: Rows = {
    "cls_token": "class_token",
    "pos_embed": "pos_embedding",
    "register_tokens": "reg_tokens",
    **_linear({"patch_embed.proj": "conv_proj", "norm": "norm"}),
}
_BIRDER_SCALES = {"ls1.gamma": "layer_scale_1.gamma", "ls2.gamma": "layer_scale_2.gamma"}
_BIRDER_MLP = _block("encoder.block", {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"})

BIRDER = Layout(
    name="birder",
    title="Birder 0.4.0 and newer",
    stem=_BIRDER_STEM,
    block=_block(
        "encoder.block",
        {"norm1": "norm1", "attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "norm2": "norm2"},
        _BIRDER_SCALES,
    ),
    mlp=_BIRDER_MLP,
    swiglu=None,
    head="classifier",
    folds="always",
    lacks=frozenset({"mask_token"}),
)

BIRDER_LEGACY = Layout(
    name="birder_legacy",
    title="Birder up to 0.3.3",
    stem=_BIRDER_STEM,
    block=_block(
        "encoder.block",
        {"norm1": "ln1", "attn.proj": "self_attention.out_proj", "norm2": "ln2"},
        {
            "attn.qkv.weight": "self_attention.in_proj_weight",
            "attn.qkv.bias": "self_attention.in_proj_bias",
            **_BIRDER_SCALES,
        },
    ),
    mlp=_BIRDER_MLP,
    swiglu=None,
    head="classifier",
    folds="always",
    lacks=frozenset({"mask_token"}),
)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (OFFICIAL, HF, HF5, TIMM, BIRDER, BIRDER_LEGACY)}

_RULE_OF = {"official": OFFICIAL, "meta": OFFICIAL, "transformers": HF, "hf": HF, "timm": TIMM, "birder": BIRDER}


def named_position_rule(name: str, num_registers: int) -> PositionRule:
    """How an implementation resamples positions: "official" (or "meta"), "transformers" (or "hf"), "timm", "birder".

    Raises:
        ValueError: another name.
    """
    if name not in _RULE_OF:
        raise ValueError(f"position rule {name!r} is unknown; use one of {', '.join(_RULE_OF)}, or a PositionRule.")
    return _RULE_OF[name].position_rule(num_registers)
