"""What a machine gets is one row of a table, with a reason; what it can't do well it does not get."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dinokit.engine import ROWS, Machine, Plan, decide, look

AVX2_CPU = Machine(name="avx2", vector="AVX2", mkl=True, onednn=True, int8=True, kernels=True)
OLD_CPU = Machine(name="old", vector="AVX2", mkl=True, onednn=True, int8=True)
NEW_CPU = Machine(
    name="new", vector="AVX512", intel=True, mkl=True, onednn=True, bf16=True, amx=True, vnni=True, int8=True
)
GPU = Machine(kind="cuda", name="gpu", bf16=True)


@pytest.mark.parametrize(
    ("machine", "asked", "expected"),
    [
        (NEW_CPU, "bfloat16", Plan(dtype=torch.bfloat16, residual=torch.bfloat16, linear="onednn", pad_tokens=16)),
        (NEW_CPU, "float32", Plan(linear="mkl")),
        (NEW_CPU, "int8", Plan(linear="int8")),
        (OLD_CPU, "float32", Plan(in_place=True)),
        (OLD_CPU, "int8", Plan(linear="int8")),
        (AVX2_CPU, "float32", Plan(linear="avx2", in_place=True)),
        (AVX2_CPU, "int16", Plan(linear="avx2-int16", in_place=True)),
        (AVX2_CPU, "int8", Plan(linear="avx2-int8", in_place=True)),
        (replace(AVX2_CPU, vnni=True), "int8", Plan(linear="int8")),
        (replace(NEW_CPU, kernels=True), "float32", Plan(linear="mkl")),
        (GPU, "bfloat16", Plan(dtype=torch.bfloat16, residual=torch.bfloat16)),
        (GPU, "float16", Plan(dtype=torch.float16, residual=torch.float16)),
        (GPU, "float32", Plan()),
    ],
)
def test_each_machine_gets_its_row(machine, asked, expected):
    """The table as documented."""
    plan = decide(machine, asked)
    assert (plan.dtype, plan.residual, plan.linear) == (expected.dtype, expected.residual, expected.linear)
    assert (plan.pad_tokens, plan.in_place, plan.compiled) == (expected.pad_tokens, expected.in_place, False)


@pytest.mark.parametrize("asked", ["bfloat16", "float16"])
def test_without_the_instructions_nothing_slower_than_float32_is_chosen(asked):
    """A CPU that would emulate the format computes in float32 and says so."""
    plan = decide(OLD_CPU, asked)
    assert plan.dtype == torch.float32
    assert replace(plan, because=()) == replace(decide(OLD_CPU), because=())
    assert f"{asked} would be slower than float32 on old" in plan.explain()


def test_kernels_that_are_missed_are_said_where_they_would_be_taken():
    """With the reason; and not where other instructions are faster anyway."""
    why = "they were not built"
    for asked in ("float32", "int16", "int8"):
        plan = decide(replace(OLD_CPU, without_kernels=why), asked)
        assert not plan.kernels
        assert f"dinokit's own kernels would be faster, but {why}" in plan.explain()
    assert (
        "int16 would be slower than float32 on old, which lacks dinokit's kernels" in decide(OLD_CPU, "int16").explain()
    )
    for machine in (NEW_CPU, GPU, AVX2_CPU):
        assert (
            "would be faster" not in decide(replace(machine, without_kernels="" if machine.kernels else why)).explain()
        )


def test_every_row_can_be_reached_and_gives_a_reason():
    """No dead rows, no silent ones."""
    machines = [
        OLD_CPU,
        AVX2_CPU,
        NEW_CPU,
        Machine(bf16=True, onednn=True),
        GPU,
        Machine(kind="mps", name="mps"),
        Machine(kind="xpu", name="xpu"),
    ]
    reached = {
        id(next(row for row in ROWS if row.asked == asked and row.applies(machine)))
        for machine in machines
        for asked in {row.asked for row in ROWS if row.applies(machine)}
    }
    assert reached == {id(row) for row in ROWS}
    assert all(row.why for row in ROWS)


def test_a_float32_residual_stream_can_be_asked_for():
    """And only that: a residual stream less exact than the rest is refused."""
    assert decide(NEW_CPU, "bfloat16", residual=torch.float32).residual == torch.float32
    with pytest.raises(ValueError, match="residual is torch\\.float16"):
        decide(NEW_CPU, "bfloat16", residual=torch.float16)
    with pytest.raises(ValueError, match="must be one of float32"):
        decide(NEW_CPU, "float8")


def test_a_compiled_plan_is_left_to_the_compiler():
    """Packed operators would break its graph."""
    plan = decide(NEW_CPU, "bfloat16", compiled=True)
    assert (plan.linear, plan.pad_tokens, plan.compiled) == ("plain", 1, True)
    assert "compiled" in str(plan)


def test_this_machine_is_seen_as_pytorch_sees_it():
    """The facts behind the decision."""
    found = look()
    assert found.kind == "cpu"
    assert found.vector == torch.backends.cpu.get_cpu_capability()
    assert found.bf16 == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert decide(found).because


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_stay_with_the_process_once_asked():
    """In a process of its own: blocks of 64 MB, freed and taken again, cause no further page faults.

    The first few may: where a small block was left behind a freed one, the next that is aligned needs new room, once.
    """
    code = """
import resource, sys
import torch
from dinokit.engine import keep_large_blocks
if sys.argv[1] == "keep":
    assert keep_large_blocks()
for _ in range(8):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "leave")
    }
    assert faults["keep"] * 10 < faults["leave"]
