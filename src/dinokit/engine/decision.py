"""Which techniques run a network fastest on a machine: a table, its first row that applies, and the reason in words.

Where the figures come from: docs/performance.md. A decision is a function of the machine and of what was asked for, never of a
measurement, so that the same machine always gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from dinokit.engine.machine import Machine

Linear = Literal["plain", "mkl", "onednn", "int8", "avx2", "avx2-int16", "avx2-int8"]
Asked = Literal["float32", "bfloat16", "float16", "int16", "int8"]
ASKED: tuple[Asked, ...] = get_args(Asked)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is run.

    `dtype` is that of weights, activations and tokens; `residual` that of the residual stream. `linear` names how matrices are
    multiplied; `pad_tokens` pads sequences to a multiple of it, the added keys masked; `in_place` writes into buffers that a pass owns;
    `compiled` runs the blocks through `torch.compile`. `because` has a sentence for each choice.
    """

    dtype: torch.dtype = torch.float32
    residual: torch.dtype = torch.float32
    linear: Linear = "plain"
    pad_tokens: int = 1
    in_place: bool = False
    compiled: bool = False
    because: tuple[str, ...] = ()

    @property
    def kernels(self) -> bool:
        """Whether blocks run in dinokit's own compiled kernels."""
        return self.linear.startswith("avx2")

    def __str__(self) -> str:
        """One line: what was chosen."""
        parts = [_short(self.dtype), f"{self.linear} matrices"]
        if self.residual != self.dtype:
            parts.append(f"{_short(self.residual)} residual stream")
        if self.pad_tokens > 1:
            parts.append(f"tokens padded to {self.pad_tokens}")
        if self.compiled:
            parts.append("compiled")
        return ", ".join(parts)

    def explain(self) -> str:
        """What was chosen, and why."""
        return f"{self}: {'; '.join(self.because)}."


@dataclass(frozen=True)
class Row:
    """A technique: for what was asked, where it applies, what it is, and why."""

    asked: Asked
    applies: Callable[[Machine], bool]
    plan: Plan
    why: str


_F32, _BF16 = torch.float32, torch.bfloat16


def _avx2(machine: Machine) -> bool:
    """Wider instructions are used by PyTorch's libraries, not by the kernels."""
    return machine.kind == "cpu" and machine.kernels and machine.vector == "AVX2"


ROWS: tuple[Row, ...] = (
    Row(
        "bfloat16",
        lambda m: m.kind == "cpu" and m.bf16 and m.amx,
        Plan(dtype=_BF16, residual=_BF16, linear="onednn", pad_tokens=16),
        "this CPU multiplies bfloat16 in tiles (AMX); weights are packed for it once, and attention wants token counts of 16",
    ),
    Row(
        "bfloat16",
        lambda m: m.kind == "cpu" and m.bf16,
        Plan(dtype=_BF16, residual=_BF16, linear="onednn"),
        "this CPU multiplies bfloat16; weights are packed for it once",
    ),
    Row(
        "int16",
        lambda m: _avx2(m),
        Plan(linear="avx2-int16", in_place=True),
        "12-bit weights a channel and 12-bit activations a token in dinokit's own kernels, 1.5 times as fast as those of "
        "float32; attention alike, the rest in float32",
    ),
    Row(
        "int8",
        lambda m: _avx2(m) and not m.vnni,
        Plan(linear="avx2-int8", in_place=True),
        "8-bit weights a channel and 7-bit activations a token in dinokit's own kernels; attention in 12 bits, the rest in float32",
    ),
    Row(
        "int8",
        lambda m: m.kind == "cpu" and m.int8,
        Plan(linear="int8"),
        "8-bit weights a channel and 8-bit activations a token; the rest in float32",
    ),
    Row(
        "float32",
        lambda m: _avx2(m),
        Plan(linear="avx2", in_place=True),
        "on a CPU whose widest instructions are AVX2, dinokit's own kernels are faster than PyTorch's libraries",
    ),
    Row(
        "float32",
        lambda m: m.kind == "cpu" and m.mkl and m.intel,
        Plan(linear="mkl"),
        "on Intel's CPUs MKL is faster with weights packed once",
    ),
    Row(
        "float32",
        lambda m: m.kind == "cpu",
        Plan(in_place=True),
        "packed weights gain nothing on other CPUs; what can be saved is copies and allocations",
    ),
    Row(
        "bfloat16",
        lambda m: m.kind == "cuda" and m.bf16,
        Plan(dtype=_BF16, residual=_BF16),
        "this GPU multiplies bfloat16",
    ),
    Row(
        "float16",
        lambda m: m.kind in ("cuda", "mps"),
        Plan(dtype=torch.float16, residual=torch.float16),
        "this GPU multiplies float16",
    ),
    Row("bfloat16", lambda m: m.kind == "mps", Plan(dtype=_BF16, residual=_BF16), "this GPU multiplies bfloat16"),
    Row("float32", lambda _: True, Plan(), "float32 as it is"),
)


def decide(
    machine: Machine, asked: Asked = "float32", *, residual: torch.dtype | None = None, compiled: bool = False
) -> Plan:
    """The plan for a machine: the first row of `ROWS` for what was asked that applies, float32's where none does.

    `residual` keeps the residual stream in another dtype, which makes bfloat16 more exact. `compiled` is for GPUs and long runs: the
    first pass of each input size takes many seconds.

    Raises:
        ValueError: what was asked for is unknown, or a residual stream that is less exact than the rest.
    """
    if asked not in ASKED:
        raise ValueError(f"dtype is {asked!r}; it must be one of {', '.join(ASKED)}.")
    reasons = []
    row = _first(machine, asked)
    if row is None:
        place = machine.name or machine.kind
        lacks = "dinokit's kernels for it" if asked == "int16" else "the instructions"
        reasons.append(f"{asked} would be slower than float32 on {place}, which lacks {lacks}, so float32 is used")
        row = _first(machine, "float32")
        assert row is not None
    plan = row.plan
    reasons.append(row.why)
    if machine.without_kernels:
        better = _first(replace(machine, kernels=True), asked)
        if better is not None and better.plan.kernels:
            reasons.append(f"dinokit's own kernels would be faster, but {machine.without_kernels}")
    if residual is not None and residual != plan.residual:
        if residual != torch.float32:
            raise ValueError(f"residual is {residual}; it can be float32 or that of the plan ({plan.residual}).")
        plan = replace(plan, residual=residual)
        reasons.append("the residual stream in float32, as asked")
    if compiled:
        plan = replace(plan, linear="plain", in_place=False, pad_tokens=1, compiled=True)
        reasons.append("compiled, as asked")
    return replace(plan, because=tuple(reasons))


def _first(machine: Machine, asked: Asked) -> Row | None:
    return next((row for row in ROWS if row.asked == asked and row.applies(machine)), None)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
