"""`Machine`: what a device can do that decides how a network runs fastest on it.

Plain values, so that any decision can be forced and tested on any machine.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from dinokit import native

CPU_FACTS = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device. `kind` is PyTorch's name of it ("cpu", "cuda", "mps").

    `vector` names the widest instructions of a CPU that PyTorch uses; `bf16` says that its matrix library multiplies bfloat16
    natively, `amx` in tiles, `vnni` that it has 8-bit dot products. `intel` decides between matrix libraries. `kernels` says
    that dinokit's own compiled kernels can be called, `without_kernels` why not. `name` is for people.
    """

    kind: str = "cpu"
    name: str = ""
    vector: str = ""
    threads: int = 1
    intel: bool = False
    mkl: bool = False
    onednn: bool = False
    bf16: bool = False
    amx: bool = False
    vnni: bool = False
    int8: bool = False
    kernels: bool = False
    without_kernels: str = ""


def look(device: torch.device | str = "cpu") -> Machine:
    """The machine behind a device, as PyTorch sees it."""
    device = torch.device(device)
    if device.type == "cuda":
        return Machine(
            kind="cuda",
            name=torch.cuda.get_device_name(device),
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        )
    if device.type != "cpu":
        return Machine(kind=device.type, name=device.type)
    maker, name = _cpu_name()
    return Machine(
        name=name,
        vector=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        intel=maker == "GenuineIntel",
        mkl=torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear"),
        onednn=torch.backends.mkldnn.is_available(),
        bf16=torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        amx=bool(torch.cpu._is_amx_tile_supported()),
        vnni=bool(torch.cpu._is_vnni_supported()),
        int8="x86" in torch.backends.quantized.supported_engines and hasattr(torch, "quantize_per_channel"),
        kernels=native.available(),
        without_kernels=native.missing(),
    )


def _cpu_name() -> tuple[str, str]:
    """(Maker, name) of the first processor."""
    if not CPU_FACTS.is_file():
        return "", platform.processor() or platform.machine()
    found: dict[str, str] = {}
    for line in CPU_FACTS.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found.get("vendor_id", ""), found.get("model name", "") or platform.machine()
